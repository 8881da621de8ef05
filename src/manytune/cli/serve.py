"""`manytune serve`: a base and all adapters of a directory behind one address."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fastapi import FastAPI
    from uvicorn import Server

    from manytune.engine.weights import Weights
    from manytune.server.loop import EngineLoop
    from manytune.store.base import Base
    from manytune.store.quantization import Packing
    from manytune.store.store import AdapterStore

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class _Weights(StrEnum):
    reordered = "reordered"
    plain = "plain"
    int8 = "int8"
    int4 = "int4"
    nf4 = "nf4"


#: What the engine does with them; those that are packed stay as they are.
_IN_ENGINE: dict[_Weights, Weights] = {
    _Weights.reordered: "reordered",
    _Weights.plain: "plain",
    _Weights.int8: "int8",
    _Weights.int4: "int4",
    _Weights.nf4: "plain",
}


def _parse_weights(value: str) -> _Weights:
    if value == "packed":
        raise typer.BadParameter("'packed' is called 'reordered' now; use --weights reordered.")
    if value not in list(_Weights):
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(_Weights)}.")
    return _Weights(value)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("serve")(serve)


def serve(
    base: Annotated[
        str, typer.Option(help="A hub id, a directory, a .gguf file, or embedded.", show_default=False)
    ],
    adapters: Annotated[
        Path,
        typer.Option(
            envvar="MANYTUNE_STORE",
            help="A store of adapters, or a directory with a subdirectory for each; or set MANYTUNE_STORE.",
        ),
    ] = Path("adapters"),
    host: Annotated[
        str, typer.Option(help="The address to listen on; others than loopback need keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for any free one.")] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(
            help="A JSON file of API keys. MANYTUNE_API_KEY and MANYTUNE_ADMIN_KEY in the environment give one each.",
            show_default=False,
        ),
    ] = None,
    base_name: Annotated[
        str | None,
        typer.Option(help="The plain base's name in requests; by default the last part of --base."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="The base's type, such as bfloat16; as stored if not given.")
    ] = None,
    weights: Annotated[
        _Weights,
        typer.Option(
            help="How the base's weights are kept: reordered, plain, or rounded to int8 or int4, on a CPU; nf4 packs "
            "them into 4 bits as QLoRA does, on any device.",
            parser=_parse_weights,
            metavar=f"[{'|'.join(_Weights)}]",
        ),
    ] = _Weights.reordered,
    max_batch: Annotated[int, typer.Option(min=1, help="Requests that run at once.")] = 32,
    max_queue: Annotated[
        int,
        typer.Option(
            min=0,
            help="Answers of each tenant that may wait in addition to --max-batch; more are refused with 429.",
        ),
    ] = 64,
    max_connections: Annotated[
        int,
        typer.Option(
            min=2,
            help="Connections at once, of which one client address may have half; those without a request make place.",
        ),
    ] = 512,
    kv_tokens: Annotated[
        int, typer.Option(min=16, help="Capacity of the KV cache: tokens of all running requests.")
    ] = 32768,
    prefix_tokens: Annotated[
        int, typer.Option(min=0, help="Prompt tokens kept in the prefix cache; 0 for none.")
    ] = 0,
    max_answer_tokens: Annotated[int, typer.Option(min=1, help="Largest max_tokens of a request.")] = 1024,
    adapter_memory: Annotated[int, typer.Option(min=1, help="MiB that adapters in memory may take.")] = 1024,
    adapter_limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="MiB that one adapter may take while it runs; half of the free memory if not given.",
            show_default=False,
        ),
    ] = None,
    watch_seconds: Annotated[
        float, typer.Option(min=0.1, help="Interval at which the store is checked for new versions.")
    ] = 2.0,
    drain_seconds: Annotated[
        int, typer.Option(min=0, help="How long running answers may continue after SIGTERM.")
    ] = 30,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Log prompts and answers as well.")
    ] = False,
) -> None:
    """Serve a base and every adapter of a store or a directory behind an OpenAI-compatible address.

    Choose the adapter with the request's `model` field. The API is under /v1, a playground at /, metrics at /metrics.

    Without any adapters it serves the base, and those that are added later.

    An adapter is loaded when it is first requested; a new version under its name serves from the next request on.

    Without keys the server answers this machine only, and admin routes are off. The log is JSON, on stderr.
    """
    from manytune.errors import ServeError

    try:
        import re2  # noqa: F401 - expressions in foreign adapters are matched by nothing else
        import uvicorn  # noqa: F401 - looked for before the base is loaded

        from manytune.server.app import create_app
        from manytune.server.key_file import KeySource
        from manytune.server.listening import check_address
        from manytune.server.logs import log_to_stderr
    except ImportError as error:
        raise ServeError(f"{error.name} isn't installed. Run: pip install 'manytune[serve]'") from error

    from manytune.engine.options import EngineOptions
    from manytune.server.images import MOST_BODY_BYTES
    from manytune.server.settings import Settings

    api_keys = KeySource(keys, os.environ)
    if not api_keys.read() and host not in _LOOPBACK:
        raise ServeError(
            f"--host {host} can be reached by others, and there are no API keys. Give --keys or set MANYTUNE_API_KEY, "
            "or listen on 127.0.0.1."
        )

    check_address(host, port)

    def make() -> tuple[FastAPI, AdapterStore, str]:
        packing: Packing | None = "nf4" if weights is _Weights.nf4 else None
        loaded, store, name = _load(base, adapters, base_name, dtype, packing)
        settings = Settings(
            base_name=name,
            max_body_bytes=MOST_BODY_BYTES if loaded.images is not None else Settings.max_body_bytes,
            max_queue=max_queue,
            max_answer_tokens=max_answer_tokens,
            adapter_memory=adapter_memory << 20,
            watch_seconds=watch_seconds,
            drain_seconds=drain_seconds,
            log_prompts=log_prompts,
        )
        options = EngineOptions(
            max_batch=max_batch,
            kv_budget_tokens=kv_tokens,
            prefix_cache_tokens=prefix_tokens,
            adapter_bytes=None if adapter_limit is None else adapter_limit << 20,
            weights=_IN_ENGINE[weights],
        )
        return create_app(loaded, store, settings, api_keys, options), store, name

    # A thread that has computed something keeps its OpenMP workers for life. With those of the engine's thread there
    # would be more than cores, and then all of them sleep between any two products. So the loading thread ends.
    with ThreadPoolExecutor(1) as loading:
        app, store, name = loading.submit(make).result()
    log_to_stderr()
    found = len(store.names())
    typer.echo(f"{name} and {found} adapters at http://{host}:{port} (playground, /v1)", err=True)
    if not found:
        typer.echo(
            f"{adapters}: no adapters yet; those that are put there are served from then on.", err=True
        )
    _listen(app, host, port, drain_seconds=drain_seconds, max_connections=max_connections)


def _listen(app: FastAPI, host: str, port: int, *, drain_seconds: int, max_connections: int) -> None:
    """Answer requests until the process is asked to end; exit 1 if it couldn't start, or if its engine failed."""
    from manytune.server.connections import ConnectionLimits
    from manytune.server.listening import web_server

    limits = ConnectionLimits(most=max_connections, most_of_address=max(1, max_connections // 2))
    server = web_server(app, host=host, port=port, drain_seconds=drain_seconds, limits=limits)
    if not _run(server, app.state.service.loop):
        raise typer.Exit(1)


def _run(server: Server, loop: EngineLoop) -> bool:
    """Serve until SIGTERM or a failure of the engine. False if the server has failed, or couldn't start."""

    def end() -> None:
        server.should_exit = True

    loop.on_failure = end  # the service manager restarts the process
    with suppress(KeyboardInterrupt):  # raised after the orderly shutdown
        server.run()
    return loop.failure is None and server.started


def _load(
    base: str, adapters: Path, base_name: str | None, dtype: str | None, packing: Packing | None
) -> tuple[Base, AdapterStore, str]:
    """The base, the store, and the base's name in requests."""
    from manytune.cli.chosen import answering_device
    from manytune.errors import ServeError
    from manytune.examination.examiner import shared_examiner
    from manytune.store.base import load_base
    from manytune.store.folder import adapters_in, require_adapters_or_nothing, store_at
    from manytune.store.labels import NAME

    name = base_name if base_name is not None else Path(base).expanduser().resolve().name
    if not NAME.fullmatch(name):
        raise ServeError(f"{name!r} can't be the name of a model; give one with --base-name, such as base.")
    if name in adapters_in(adapters.expanduser()):
        raise ServeError(
            f"an adapter is called {name!r} like the base; give the base another name with --base-name."
        )
    require_adapters_or_nothing(adapters)
    examiner = shared_examiner()
    examiner.begin()  # while the base is loaded
    loaded = load_base(base, dtype=dtype, device=answering_device(), weights=packing)
    store = store_at(adapters, loaded, examiner.require_source)
    store.refresh()
    return loaded, store, name
