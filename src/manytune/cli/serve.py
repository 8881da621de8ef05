"""`manytune serve`: a base and all adapters of a directory behind one address."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manytune.cli.options import AsJson
from manytune.errors import ServeError
from manytune.extras import install_command
from manytune.free_memory import free_memory

if TYPE_CHECKING:
    from fastapi import FastAPI
    from uvicorn import Server

    from manytune.server.loop import EngineLoop
    from manytune.server.opening import ServeOptions


class _Engine(StrEnum):
    manytune = "manytune"
    vllm = "vllm"


class _Weights(StrEnum):
    auto = "auto"
    reordered = "reordered"
    plain = "plain"
    bf16 = "bf16"
    int8 = "int8"
    int4 = "int4"
    nf4 = "nf4"


class _Runtime(StrEnum):
    auto = "auto"
    torch = "torch"
    openvino = "openvino"


class _Speculation(StrEnum):
    auto = "auto"
    on = "on"
    off = "off"


class _Cluster(StrEnum):
    ray = "ray"


_LEAST_OF_A_WORKER = 100 << 20
"""Bytes that a server process takes at the very least: its interpreter and libraries, without a base."""


def _check_workers(workers: int) -> None:
    """Refuse more processes than the memory can hold before the machine is busy with starting them."""
    free = free_memory()
    if free is not None and workers > 1 and workers * _LEAST_OF_A_WORKER > free:
        raise typer.BadParameter(
            f"{workers:,} processes need {workers * _LEAST_OF_A_WORKER >> 20:,} MiB without their base, and "
            f"{free >> 20:,} MiB are free. Usual is one for a few cores.",
            param_hint="--workers",
        )


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
    context: typer.Context,
    base: Annotated[
        str, typer.Option(help="A hub id, a directory, a .gguf file, or embedded.", show_default=False)
    ],
    adapters: Annotated[
        str,
        typer.Option(
            "--adapters",
            "--store",
            envvar="MANYTUNE_STORE",
            help="A store of adapters, a URL of one such as s3://bucket/prefix, or a directory with a subdirectory for "
            "each; or set MANYTUNE_STORE.",
        ),
    ] = "adapters",
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
            help="How the base's weights are kept: reordered, plain, or rounded to bf16, int8 or int4, on a CPU; nf4 "
            "packs them into 4 bits as QLoRA does, on any device. auto is int4 on a CPU for a base whose file had 4 "
            "bits (such as Q4_1), if that is faster, bf16 for one in bfloat16 that OpenVINO runs, if the processor "
            "multiplies it, and reordered for others; the log says which and why.",
            parser=_parse_weights,
            metavar=f"[{'|'.join(_Weights)}]",
        ),
    ] = _Weights.auto,
    runtime: Annotated[
        _Runtime,
        typer.Option(
            help="What computes the base: torch, or OpenVINO on a CPU (the extra manytune[openvino]). auto is OpenVINO "
            "where it is installed and can run the base. Torch runs what OpenVINO can't, and the log says so."
        ),
    ] = _Runtime.auto,
    speculation: Annotated[
        _Speculation,
        typer.Option(
            help="Whether tokens that repeat the prompt or the answer are guessed and read several at once, where it "
            "pays. auto does it where answers stay the same: in float32, and in OpenVINO's bf16, int8 and int4. on "
            "does it in every form, in some of which tokens of almost equal probability may change places."
        ),
    ] = _Speculation.auto,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            help="Server processes, each with an engine of its own; requests for one adapter go to the same one. "
            "--max-batch, --kv-tokens, --adapter-memory and the like are those of each.",
        ),
    ] = 1,
    on: Annotated[
        _Cluster | None,
        typer.Option(help="Serve by replicas on a cluster: Ray Serve (the extra manytune[ray-serve])."),
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="With --on: how many servers there are.")] = 2,
    max_replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --on: how many there may be while more than --max-batch requests of each are in work.",
            show_default=False,
        ),
    ] = None,
    cores: Annotated[int, typer.Option(min=1, help="With --on: cores of each.")] = 1,
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
    engine: Annotated[
        _Engine,
        typer.Option(help="What generates: manytune itself, or a vLLM that it starts and keeps in step."),
    ] = _Engine.manytune,
    vllm: Annotated[str, typer.Option(help="vLLM's executable, in an environment of its own.")] = "vllm",
    check: Annotated[
        bool,
        typer.Option("--check", help="Only list which adapters vLLM can serve, and why not the others."),
    ] = False,
    as_json: AsJson = False,
    ray_config: Annotated[
        Path | None,
        typer.Option(
            help="Only write what ray.serve.llm takes, a new directory with serve.yaml and the adapters.",
            show_default=False,
        ),
    ] = None,
    ray_adapters: Annotated[
        str | None,
        typer.Option(
            help="Where Ray will find those adapters, such as s3://bucket/adapters.", show_default=False
        ),
    ] = None,
    vllm_options: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- VLLM-OPTIONS", help="Options for vLLM, after --.", show_default=False),
    ] = None,
) -> None:
    """Serve a base and every adapter of a store or a directory behind an OpenAI-compatible address.

    Choose the adapter with the request's `model` field. The API is under /v1, a playground at /, metrics at /metrics.

    Without any adapters it serves the base, and those that are added later.

    An adapter is loaded when it is first requested; a new version under its name serves from the next request on.

    Without keys the server answers this machine only, and admin routes are off. The log is JSON, on stderr.
    """
    from manytune.cli.serve_vllm import require_vllm, serve_with_vllm

    if engine is _Engine.vllm:
        serve_with_vllm(context)
        return
    require_vllm(context)
    if on is not None and workers > 1:
        raise typer.BadParameter("--workers is for one machine; with --on, give --replicas.")
    _check_workers(workers)
    try:
        import re2  # noqa: F401 - expressions in foreign adapters are matched by nothing else
        import uvicorn  # noqa: F401 - looked for before the base is loaded

        from manytune.server.access.key_file import KeySource, require_keys_for
        from manytune.server.listening import check_address, host_of, require_this_system
        from manytune.server.logs import log_to_stderr

        if workers == 1 and on is None:  # else this process loads nothing that models need
            import manytune.server.app  # noqa: F401 - the same
    except ImportError as error:
        raise ServeError(f"{error.name} isn't installed. Run: {install_command('serve')}") from error

    from manytune.cli.serve_replicas import serve_by_workers, serve_on_ray
    from manytune.server.opening import ServeOptions, open_server

    require_this_system()
    host = host_of(host)
    api_keys = KeySource(keys, os.environ)
    require_keys_for(host, api_keys)

    check_address(host, port)
    options = ServeOptions(
        base=base,
        adapters=adapters,
        base_name=base_name,
        dtype=dtype,
        weights=weights.value,
        runtime=runtime.value,
        speculation=speculation.value,
        max_batch=max_batch,
        max_queue=max_queue,
        kv_tokens=kv_tokens,
        prefix_tokens=prefix_tokens,
        max_answer_tokens=max_answer_tokens,
        adapter_memory=adapter_memory,
        adapter_limit=adapter_limit,
        watch_seconds=watch_seconds,
        drain_seconds=drain_seconds,
        log_prompts=log_prompts,
    )
    say = partial(_say_what_is_served, options, host, port)
    if on is not None:
        serve_on_ray(
            options,
            api_keys,
            replicas=replicas,
            most_replicas=max_replicas,
            cores=cores,
            host=host,
            port=port,
        )
        return
    if workers > 1:
        serve_by_workers(
            options,
            api_keys,
            workers=workers,
            host=host,
            port=port,
            max_connections=max_connections,
            say=say,
        )
        return

    from manytune.cli.chosen import answering_device
    from manytune.cli.outputs.progress import wait_for

    log_to_stderr()  # it also says how the base runs
    # A thread that has computed something keeps its OpenMP workers for life. With those of the engine's thread there
    # would be more than cores, and then all of them sleep between any two products. So the loading thread ends.
    with ThreadPoolExecutor(1) as loading:
        work = loading.submit(open_server, options, api_keys, device=answering_device())
        opened = wait_for(work, f"loading {base}")
    say(opened.base_name, len(opened.store.names()))
    _listen(opened.app, host, port, drain_seconds=drain_seconds, max_connections=max_connections)


def _say_what_is_served(options: ServeOptions, host: str, port: int, name: str, found: int) -> None:
    from manytune.cli.outputs.lines import print_line

    adapters = "1 adapter" if found == 1 else f"{found:,} adapters"
    print_line(f"{name} and {adapters} at http://{host}:{port} (playground, /v1)", stderr=True)
    if not found:
        print_line(
            f"{options.adapters}: no adapters yet; those that are put there are served from then on.",
            stderr=True,
        )


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
