"""`manytune serve --on ray`: servers as replicas of a Ray Serve deployment, behind a front that is another.

    from manytune.replicas.ray_deployment import application

    serve.run(application(ServeOptions(base="...", adapters=Path("/shared/adapters")), replicas=2), route_prefix="/")

Ray Serve places replicas, starts others in place of those that end, and adds and removes them by the number of requests
in work. All of them read one store: on a file system that every machine sees under the same path, or on shared storage.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Receive, Scope, Send

from manytune.errors import ServeError
from manytune.replicas.asgi_call import call
from manytune.replicas.contract import Facts, Forwarded, Head, Route, WholeAnswer
from manytune.replicas.front import front_app
from manytune.replicas.names import names_in
from manytune.replicas.ray_replicas import RayReplicas
from manytune.replicas.ray_router import AffinityRouter
from manytune.replicas.vouching import VouchedKeys
from manytune.server.access.auth import Key, Keys
from manytune.server.opening import ServeOptions, open_server
from manytune.store.remote.location import local_directory

_FAILED = "the engine has failed"


class Replica:
    """One server, in an actor of Ray Serve.

    Args:
        options: What it serves.
        secret: What the front proves itself with; None on a server without keys.
        threads: Over how many cores it spreads its products.
    """

    async def __init__(  # type: ignore[misc] # Ray Serve awaits it
        self, options: ServeOptions, secret: str | None, threads: int
    ) -> None:
        os.environ.setdefault(
            "OMP_NUM_THREADS", str(threads)
        )  # read when torch is first imported, which is below
        self._opened = await asyncio.to_thread(_open, options, secret, threads)
        self._app: Any = self._opened.app
        self._name = serve.get_replica_context().replica_id.unique_id
        self._life = AsyncExitStack()
        await self._life.enter_async_context(self._app.router.lifespan_context(self._app))

    async def answer(self, request: Forwarded, route: Route) -> Any:
        """The head of an answer, and its body as it is written."""
        async for part in call(self._app, request, self._name):
            yield part

    async def whole(self, request: Forwarded) -> WholeAnswer:
        """A complete answer."""
        head, body = Head(self._name, 500, ()), b""
        async for part in call(self._app, request, self._name):
            if isinstance(part, Head):
                head = part
            else:
                body += part
        return WholeAnswer(head.replica, head.status, head.headers, body)

    async def facts(self) -> Facts:
        """What the front has to know."""
        return Facts.of(self._opened)

    def check_health(self) -> None:
        """Ray Serve calls this every few seconds, and starts another replica if it fails.

        Raises:
            RuntimeError: The engine has failed.
        """
        if self._app.state.service.loop.failure is not None:
            raise RuntimeError(_FAILED)


class Front:
    """The front, in an actor of Ray Serve: one, since it counts what keys are limited to.

    Args:
        replicas: The replicas' handle.
        keys: The API keys.
        secret: What it proves itself with; None on a server without keys.
        watch_seconds: Interval at which a store on shared storage is checked for other names.
    """

    def __init__(
        self, replicas: DeploymentHandle[Any], keys: tuple[Key, ...], secret: str | None, watch_seconds: float
    ) -> None:
        self._handle = replicas
        self._keys = Keys(keys)
        self._secret = secret
        self._watch_seconds = watch_seconds

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """See `serve.ingress`."""
        return _WhenReplicasAre(self._handle, self._keys, self._secret, self._watch_seconds)


class _WhenReplicasAre:
    """The front's application, made at the first request of what a replica says it serves."""

    def __init__(
        self, handle: DeploymentHandle[Any], keys: Keys, secret: str | None, watch_seconds: float
    ) -> None:
        self._handle = handle
        self._keys = keys
        self._secret = secret
        self._watch_seconds = watch_seconds
        self._following: asyncio.Task[None] | None = None
        self._making = asyncio.Lock()
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the application's life."""
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        async with self._making:
            if self._app is None:
                facts: Facts = await self._handle.facts.remote()
                names = names_in(facts.store)
                self._following = asyncio.create_task(names.follow(self._watch_seconds))
                self._app = front_app(
                    RayReplicas(self._handle), facts, self._keys, names.digest_of, self._secret
                )
        await self._app(scope, receive, send)


def application(
    options: ServeOptions,
    keys: Sequence[Key] = (),
    *,
    replicas: int,
    most_replicas: int | None = None,
    threads: int = 1,
    gpus: float = 0,
) -> serve.Application:
    """A server of many replicas, for `serve.run`.

    Args:
        options: What each replica serves; its adapters are a store's, in a directory or on shared storage.
        keys: The API keys.
        replicas: How many there are at least.
        most_replicas: How many there may be when many requests are in work; None for no more.
        threads: Cores of each replica.
        gpus: GPUs of each replica.

    Raises:
        ServeError: The adapters aren't in a store.
    """
    from manytune.store.description import is_store

    directory = local_directory(options.adapters)
    if directory is not None and not is_store(directory):
        raise ServeError(
            f"{options.adapters}: expected a store of adapters, which replicas read at the same time. Make one with "
            "manytune adapters add."
        )
    secret = secrets.token_urlsafe(32) if keys else None
    scaling = AutoscalingConfig(
        min_replicas=replicas,
        max_replicas=max(replicas, most_replicas or replicas),
        target_ongoing_requests=options.max_batch,
    )
    router: Any = f"{AffinityRouter.__module__}:{AffinityRouter.__qualname__}"
    deployment: Any = serve.deployment  # its annotations are for its use as a decorator without arguments
    servers = deployment(
        Replica,
        name="replica",
        autoscaling_config=scaling,
        max_ongoing_requests=options.max_batch + options.max_queue,
        ray_actor_options={"num_cpus": threads, "num_gpus": gpus},
        request_router_config=RequestRouterConfig(request_router_class=router),
        graceful_shutdown_timeout_s=options.drain_seconds,
    ).bind(options, secret, threads)
    front = deployment(
        serve.ingress()(Front),
        name="front",
        num_replicas=1,
        max_ongoing_requests=1 << 16,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=options.drain_seconds,
    )
    bound: serve.Application = front.bind(servers, tuple(keys), secret, options.watch_seconds)
    return bound


def _open(options: ServeOptions, secret: str | None, threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    keys = Keys() if secret is None else VouchedKeys(secret)
    store = local_directory(options.adapters)
    return open_server(options, keys, device=device, store=store, one_of_several=True)
