"""`manytune serve --engine vllm`: the store's adapters in a vLLM, with manytune's keys and names before it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from manytune.errors import ServeError
from manytune.extras import install_command

if TYPE_CHECKING:
    from manytune.handover.base import EmptyBase
    from manytune.handover.vllm_engine import Checked, HandoverSettings
    from manytune.handover.vllm_rules import VllmVerdicts
    from manytune.store.store import AdapterStore

_FOR_VLLM = ("vllm", "check", "as_json", "ray_config", "ray_adapters", "vllm_options")
#: Options of manytune's own engine, and what to use instead.
_NOT_FOR_VLLM = {
    "weights": "give vLLM's --quantization after --",
    "runtime": "vLLM computes the base itself",
    "speculation": "give vLLM's --speculative-config after --",
    "kv_tokens": "give vLLM's --gpu-memory-utilization or --kv-cache-memory-bytes after --",
    "prefix_tokens": "give vLLM's --enable-prefix-caching or --no-enable-prefix-caching after --",
    "adapter_limit": "vLLM has room for adapters up to --max-lora-rank",
    "workers": "give vLLM's --api-server-count or --data-parallel-size after --",
    "on": "for vLLM on Ray see --ray-config",
    "replicas": "for vLLM on Ray see --ray-config",
    "max_replicas": "for vLLM on Ray see --ray-config",
    "cores": "for vLLM on Ray see --ray-config",
    "log_prompts": "give vLLM's --enable-log-requests and --enable-log-outputs after --",
}


def require_vllm(context: typer.Context) -> None:
    """Refuse options of `--engine vllm` without it.

    Raises:
        ServeError: One was given.
    """
    given = next((name for name in _FOR_VLLM if _is_given(context, name)), None)
    if given == "vllm_options":
        raise ServeError(f"{context.params[given][0]!r}: options after -- are for --engine vllm.")
    if given is not None:
        raise ServeError(f"{_option(given)} is for --engine vllm.")


def serve_with_vllm(context: typer.Context) -> None:
    """Check the store, start vLLM, and answer requests until one of both ends.

    Raises:
        ServeError: An option isn't vLLM's, vLLM isn't installed, or it ends; with the last lines of its output.
        StoreError: The base or the store can't be read.
    """
    for name, instead in _NOT_FOR_VLLM.items():
        if _is_given(context, name):
            raise ServeError(f"{_option(name)} is for manytune's own engine: {instead}.")
    try:
        import re2  # noqa: F401 - expressions in foreign adapters are matched by nothing else
        import uvicorn  # noqa: F401

        from manytune.handover.vllm_engine import check_store
    except ImportError as error:
        raise ServeError(f"{error.name} isn't installed. Run: {install_command('serve')}") from error
    from manytune.cli.outputs.handover import print_checked
    from manytune.handover.vllm_release import find_vllm, installed
    from manytune.handover.vllm_rules import VllmVerdicts

    given = context.params
    only_lists = bool(given["check"] or given["ray_config"])
    # A listing needs no vLLM; without one, only what every release can do is taken for possible.
    vllm = installed(given["vllm"]) if only_lists else find_vllm(given["vllm"])
    settings = _settings(context)
    base, store = _opened(given)
    verdicts = VllmVerdicts(store, base.base, patterns=vllm is not None and vllm.reads_patterns)
    checked = check_store(store, verdicts, settings.more)
    if given["ray_config"] is not None:
        _write_for_ray(given, base, verdicts, checked, settings)
        return
    print_checked(checked, vllm, as_json=given["as_json"], to_stderr=not given["check"])
    if not given["check"]:
        assert vllm is not None
        _serve(given, vllm, base, store, verdicts, checked, settings)


def _serve(
    given: dict[str, Any],
    vllm: Any,
    base: EmptyBase,
    store: AdapterStore,
    verdicts: VllmVerdicts,
    checked: list[Checked],
    settings: HandoverSettings,
) -> None:
    from manytune.handover.vllm_engine import running_vllm
    from manytune.server.access.key_file import KeySource, require_keys_for
    from manytune.server.connections import ConnectionLimits
    from manytune.server.listening import check_address, host_of, web_server
    from manytune.server.logs import log_to_stderr

    host, port, most = host_of(given["host"]), given["port"], given["max_connections"]
    keys = KeySource(given["keys"], os.environ)
    require_keys_for(host, keys)
    check_address(host, port)
    log_to_stderr()
    with (
        unwound_by_sigterm(),
        running_vllm(vllm, base, store, verdicts, checked, settings, keys) as (app, process),
    ):
        limits = ConnectionLimits(most=most, most_of_address=max(1, most // 2))
        server = web_server(app, host=host, port=port, drain_seconds=given["drain_seconds"], limits=limits)

        def end() -> None:
            server.should_exit = True

        process.on_exit = end  # the service manager restarts both
        typer.echo(
            f"{settings.base_name} and {sum(one.reason is None for one in checked)} adapters at http://{host}:{port} "
            f"(/v1), by vLLM {vllm.version or ''}".rstrip(),
            err=True,
        )
        with suppress(KeyboardInterrupt):  # raised after the orderly shutdown
            server.run()
        failure = process.failure
        started = server.started
    if failure is not None:
        raise ServeError(failure)
    if not started:
        raise typer.Exit(1)


@contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """Have SIGTERM leave the block as an exception does, so that vLLM is ended and its files are removed.

    uvicorn lets running answers end at a SIGTERM, and then sends it again to whoever handled it before.
    """

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    former = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _settings(context: typer.Context) -> HandoverSettings:
    from manytune.handover.vllm_engine import HandoverSettings
    from manytune.store.labels import NAME
    from manytune.store.opening import ServedPlace

    given = context.params
    name = given["base_name"] or Path(given["base"]).expanduser().resolve().name
    if not NAME.fullmatch(name):
        raise ServeError(f"{name!r} can't be the name of a model; give one with --base-name, such as base.")
    if ServedPlace(given["adapters"]).has_name(name):
        raise ServeError(
            f"an adapter is called {name!r} like the base; give the base another name with --base-name."
        )
    more = [*(given["vllm_options"] or ())]
    if given["dtype"] is not None:
        more = ["--dtype", given["dtype"], *more]
    if _is_given(context, "max_batch"):
        more = ["--max-num-seqs", str(given["max_batch"]), *more]
    return HandoverSettings(
        base_name=name,
        adapter_memory=given["adapter_memory"] << 20,
        answer_tokens=given["max_answer_tokens"],
        queue=given["max_queue"],
        watch_seconds=given["watch_seconds"],
        more=tuple(more),
    )


def _opened(given: dict[str, Any]) -> tuple[EmptyBase, AdapterStore]:
    from manytune.handover.base import empty_base
    from manytune.store.opening import ServedPlace

    place = ServedPlace(given["adapters"])
    base = empty_base(given["base"], notify=lambda line: typer.echo(line, err=True))
    return base, place.open(base.base)


def _write_for_ray(
    given: dict[str, Any],
    base: EmptyBase,
    verdicts: VllmVerdicts,
    checked: list[Checked],
    settings: HandoverSettings,
) -> None:
    from manytune.cli.outputs.handover import print_checked
    from manytune.handover.ray_llm import write_for_ray

    if given["ray_adapters"] is None:
        raise ServeError(
            "--ray-config needs --ray-adapters: Ray loads adapters from s3://, gs://, abfss:// or azure:// alone."
        )
    print_checked(checked, None, as_json=False, to_stderr=True)
    typer.echo(write_for_ray(given["ray_config"], given["ray_adapters"], base, verdicts, checked, settings))


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


def _option(name: str) -> str:
    return "--json" if name == "as_json" else f"--{name.replace('_', '-')}"
