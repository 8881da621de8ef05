"""A server's application, made of what `manytune serve` is asked: the base is loaded, and the store is looked at."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from manytune.errors import ServeError
from manytune.free_memory import naming_short_memory
from manytune.store.remote.location import is_url

if TYPE_CHECKING:
    from fastapi import FastAPI

    from manytune.engine.speculation import SpeculationMode
    from manytune.engine.weights import Weights
    from manytune.server.access.auth import Keys
    from manytune.server.access.key_file import KeySource
    from manytune.store.base import Base
    from manytune.store.quantization import Packing
    from manytune.store.store import AdapterStore

ServedWeights = Literal["auto", "reordered", "plain", "bf16", "int8", "int4", "nf4"]
ServedRuntime = Literal["auto", "torch", "openvino"]

#: What the engine does with them; those that are packed stay as they are.
_IN_ENGINE: dict[ServedWeights, Weights | Literal["auto"]] = {
    "auto": "auto",
    "reordered": "reordered",
    "plain": "plain",
    "bf16": "bf16",
    "int8": "int8",
    "int4": "int4",
    "nf4": "plain",
}


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What a server is asked to serve, and its limits. Sizes of memory are in MiB.

    Attributes:
        base: A hub id, a directory, a .gguf file, or "embedded".
        adapters: A store, its URL on shared storage, or a directory with a subdirectory for each adapter.
        base_name: The plain base's name in requests; None for the last part of `base`.
        dtype: The base's type; None as it is stored.
        weights: How the base's weights are kept; "auto" for `manytune.engine.choice`'s.
        runtime: What computes the forwards; "auto" for OpenVINO where it can.
        speculation: Whether answers are drafted where it pays, or never.
        max_batch: Requests that run at once.
        max_queue: Answers of each tenant that may wait in addition.
        kv_tokens: Capacity of the KV cache.
        prefix_tokens: Prompt tokens kept in the prefix cache.
        max_answer_tokens: Largest `max_tokens` of a request.
        adapter_memory: What adapters in memory may take.
        adapter_limit: What one adapter may take while it runs; None for half of the free memory.
        watch_seconds: Interval at which the store is checked.
        drain_seconds: How long running answers may continue when the server stops.
        log_prompts: Whether prompts and answers are logged.
    """

    base: str
    adapters: Path | str
    base_name: str | None = None
    dtype: str | None = None
    weights: ServedWeights = "reordered"
    runtime: ServedRuntime = "torch"
    speculation: SpeculationMode = "auto"
    max_batch: int = 32
    max_queue: int = 64
    kv_tokens: int = 32768
    prefix_tokens: int = 0
    max_answer_tokens: int = 1024
    adapter_memory: int = 1024
    adapter_limit: int | None = None
    watch_seconds: float = 2.0
    drain_seconds: int = 30
    log_prompts: bool = False

    def to_json(self) -> dict[str, Any]:
        """What another process makes the same of."""
        return {**asdict(self), "adapters": str(self.adapters)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ServeOptions:
        """The inverse of `to_json`."""
        known = {one.name: values[one.name] for one in fields(cls)}
        adapters = known["adapters"]
        return cls(**{**known, "adapters": adapters if is_url(adapters) else Path(adapters)})


@dataclass(frozen=True)
class Opened:
    """An application that is ready to run.

    Attributes:
        app: The application.
        store: The adapters.
        base_name: The plain base's name in requests.
        max_body_bytes: Size of the largest request body.
        max_choices: Largest number of answers to one request.
    """

    app: FastAPI
    store: AdapterStore
    base_name: str
    max_body_bytes: int
    max_choices: int


def open_server(
    options: ServeOptions,
    keys: Keys | KeySource,
    *,
    device: str,
    store: Path | None = None,
    one_of_several: bool = False,
) -> Opened:
    """Load the base and make the application.

    Args:
        options: What is asked.
        keys: The API keys, or where they come from.
        device: Where to put the base.
        store: Read this store, which another process keeps in step with `options.adapters`; None to do so here.
        one_of_several: Other processes serve the same and must answer alike, so nothing is chosen by how fast it is, or
            by free memory.

    Raises:
        ServeError: The base can't have this name.
        StoreError: The base or the adapters can't be read.
        ConfigError: The engine can't run the base.
    """
    from manytune.engine.choice import Choice, choose
    from manytune.engine.options import EngineOptions
    from manytune.engine.product_times import product_seconds
    from manytune.server.app import create_app
    from manytune.server.images import MOST_BODY_BYTES
    from manytune.server.settings import Settings

    base, adapters, name = _load(options, device, store)
    settings = Settings(
        base_name=name,
        max_body_bytes=MOST_BODY_BYTES if base.images is not None else Settings.max_body_bytes,
        max_queue=options.max_queue,
        max_answer_tokens=options.max_answer_tokens,
        adapter_memory=options.adapter_memory << 20,
        watch_seconds=options.watch_seconds,
        drain_seconds=options.drain_seconds,
        log_prompts=options.log_prompts,
    )
    alone = not one_of_several
    measure = product_seconds if alone else None
    chosen = (
        Choice("reordered", "torch")  # there is no engine that would generate
        if base.is_encoder
        else choose(
            base.model, _IN_ENGINE[options.weights], options.runtime, measure=measure, by_memory=alone
        )
    )
    engine = EngineOptions(
        max_batch=options.max_batch,
        kv_budget_tokens=options.kv_tokens,
        prefix_cache_tokens=options.prefix_tokens,
        adapter_bytes=None if options.adapter_limit is None else options.adapter_limit << 20,
        weights=chosen.weights,
        runtime=chosen.runtime,
        speculation=options.speculation,
    )
    cache = f"a cache of keys and values for {options.kv_tokens:,} tokens (--kv-tokens)"
    with naming_short_memory(cache, instead="A smaller number of tokens needs less."):
        app = create_app(base, adapters, settings, keys, engine)
    return Opened(app, adapters, name, settings.max_body_bytes, settings.max_choices)


def _load(options: ServeOptions, device: str, store: Path | None) -> tuple[Base, AdapterStore, str]:
    """The base, the store, and the base's name in requests."""
    from manytune.examination.examiner import shared_examiner
    from manytune.store.base import load_base
    from manytune.store.labels import NAME
    from manytune.store.opening import ServedPlace
    from manytune.store.store import AdapterStore

    name = options.base_name
    if name is None:
        name = Path(options.base).expanduser().resolve().name
    if not NAME.fullmatch(name):
        raise ServeError(f"{name!r} can't be the name of a model; give one with --base-name, such as base.")
    place = ServedPlace(options.adapters)
    if place.has_name(name):
        raise ServeError(
            f"an adapter is called {name!r} like the base; give the base another name with --base-name."
        )
    examiner = shared_examiner()
    examiner.begin()  # while the base is loaded
    packing: Packing | None = "nf4" if options.weights == "nf4" else None
    base = load_base(options.base, dtype=options.dtype, device=device, weights=packing)
    if store is not None:
        return base, AdapterStore(store), name
    return base, place.open(base, examiner.require_source), name
