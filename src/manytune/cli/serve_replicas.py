"""`manytune serve --workers` and `--on ray`: the same server, of many processes or of a cluster's actors."""

from __future__ import annotations

import importlib.util
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from manytune.errors import ServeError
from manytune.extras import install_command

if TYPE_CHECKING:
    from manytune.server.access.key_file import KeySource
    from manytune.server.opening import ServeOptions


def serve_by_workers(
    options: ServeOptions,
    keys: KeySource,
    *,
    workers: int,
    host: str,
    port: int,
    max_connections: int,
    say: Callable[[str, int], None],
) -> None:
    """Answer requests by several processes until SIGTERM; exit 1 if the server couldn't listen.

    Args:
        options: What each of them serves.
        keys: Where the API keys come from.
        workers: How many processes.
        host: The address to listen on.
        port: The port.
        max_connections: Connections at once.
        say: Told the base's name and the number of adapters before clients are answered.
    """
    from manytune.replicas.local import serve_by_workers
    from manytune.server.logs import log_to_stderr

    log_to_stderr()
    started = serve_by_workers(
        options,
        keys,
        workers=workers,
        host=host,
        port=port,
        max_connections=max_connections,
        on_ready=say,
    )
    if not started:
        raise typer.Exit(1)


def serve_on_ray(
    options: ServeOptions,
    keys: KeySource,
    *,
    replicas: int,
    most_replicas: int | None,
    cores: int,
    host: str,
    port: int,
) -> None:
    """Deploy to Ray Serve, here or on the cluster that `RAY_ADDRESS` names, until SIGTERM or Ctrl+C.

    Args:
        options: What each replica serves.
        keys: Where the API keys come from.
        replicas: How many replicas there are at least.
        most_replicas: How many there may be; None for no more.
        cores: Cores of each.
        host: The address that Ray Serve listens on.
        port: The port.
    """
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("aiohttp") is None:
        raise ServeError(f"--on ray needs Ray Serve. Run: {install_command('ray-serve')}")
    import ray

    try:
        import ray.serve
    except ImportError as error:
        raise ServeError(f"--on ray needs Ray Serve. Run: {install_command('ray-serve')}") from error
    from manytune.experiments.ray_connection import start_ray
    from manytune.replicas.ray_deployment import application

    deployed = application(
        options, keys.read(), replicas=replicas, most_replicas=most_replicas, threads=cores
    )
    ray_serve: Any = ray.serve
    start_ray()
    try:
        ray_serve.start(http_options={"host": host, "port": port})
        ray_serve.run(deployed, name="manytune", route_prefix="/")
        typer.echo(f"{replicas} replicas on Ray Serve at http://{host}:{port}", err=True)
        _wait_for_the_end()
    finally:
        ray_serve.shutdown()
        ray.shutdown()


def _wait_for_the_end() -> None:
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
