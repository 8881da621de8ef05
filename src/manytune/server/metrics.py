"""The server's metrics, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from manytune.engine.request import Output
from manytune.free_memory import memory_in_use
from manytune.server.adapters.registry import AdapterRegistry
from manytune.server.loop import EngineLoop
from manytune.server.traffic import Traffic

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counts per model and per key, and the present state of what answers.

    Args:
        state: Is read when the metrics are.

    Attributes:
        traffic: The same counts of the present interval, for the server's history.
    """

    def __init__(self, state: Collector) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "manytune_requests",
            "Requests that ended, by outcome.",
            ["model", "outcome"],
            registry=registry,
        )
        self.http_errors = Counter(
            "manytune_refusals",
            "Requests answered with an error, by HTTP status.",
            ["status"],
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "manytune_prompt_tokens", "Tokens of prompts.", ["model"], registry=registry
        )
        self.answer_tokens = Counter(
            "manytune_completion_tokens", "Tokens of answers.", ["model"], registry=registry
        )
        self.first_token = Histogram(
            "manytune_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.next_token = Histogram(
            "manytune_inter_token_seconds",
            "Between tokens of an answer.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.key_requests = Counter(
            "manytune_key_requests", "Requests that ended, by the key's name.", ["key"], registry=registry
        )
        self.key_tokens = Counter(
            "manytune_key_tokens",
            "Tokens of prompts and answers, by the key's name.",
            ["key"],
            registry=registry,
        )
        self.traffic = Traffic()
        registry.register(state)

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class Timing:
    """Measures one request.

    Args:
        metrics: Where it is counted.
        model: The name of the model.
        key: The name of the key that asks.
    """

    def __init__(self, metrics: Metrics, model: str, key: str) -> None:
        self._metrics = metrics
        self._model = model
        self._key = key
        self._last = time.perf_counter()
        self._begun = False

    def observe(self, output: Output, at: float) -> None:
        """Count one event, which was there at this time, in seconds of `time.perf_counter`."""
        if output.token_id is not None:
            self.token(at)
        if output.finish_reason is not None:
            self.end(output.finish_reason)
            self.count_tokens(output.usage.prompt_tokens, output.usage.completion_tokens)

    def token(self, at: float | None = None) -> None:
        """Measure the time since the last token, or since the beginning, to one that has come then; None for now."""
        now = time.perf_counter() if at is None else at
        histogram = self._metrics.next_token if self._begun else self._metrics.first_token
        histogram.labels(self._model).observe(now - self._last)
        self._metrics.traffic.token(self._model, self._key, None if self._begun else now - self._last)
        self._begun, self._last = True, now

    def count_tokens(self, prompt_tokens: int, completion_tokens: int | None = None) -> None:
        """Count what was read, and what was generated if this is text; `observe` does it for that."""
        self._metrics.prompt_tokens.labels(self._model).inc(prompt_tokens)
        if completion_tokens is not None:
            self._metrics.answer_tokens.labels(self._model).inc(completion_tokens)
        self._metrics.key_tokens.labels(self._key).inc(prompt_tokens + (completion_tokens or 0))
        self._metrics.traffic.read(self._model, self._key, prompt_tokens)

    def end(self, outcome: str) -> None:
        """Count how the request ended."""
        self._metrics.requests.labels(self._model, outcome).inc()
        self._metrics.key_requests.labels(self._key).inc()
        self._metrics.traffic.ended(self._model, self._key)


class EngineState(Collector):
    """The counters of the engine and of the cache.

    Args:
        loop: Runs the engine.
        adapters: The adapters in memory, and their store.
    """

    def __init__(self, loop: EngineLoop, adapters: AdapterRegistry) -> None:
        self._loop = loop
        self._adapters = adapters

    def collect(self) -> Iterator[Metric]:
        """What they are now."""
        engine, cache = self._loop.counters, self._adapters.cache.counters()
        for name, text, value in (
            ("running_requests", "Requests in the batch.", engine.running),
            ("waiting_requests", "Requests in the queue.", engine.waiting),
            ("kv_tokens", "Tokens in the KV cache.", engine.kv_tokens),
            ("kv_budget_tokens", "Capacity of the KV cache in tokens.", engine.kv_budget_tokens),
            ("adapters_in_batch", "Adapters whose weights are in slots.", engine.adapters_in_slots),
            ("adapters_resident", "Adapters in memory.", cache.resident),
            ("adapters_pinned", "Adapters in memory that can't be evicted now.", cache.pinned),
            ("adapter_bytes", "Size of the adapters in memory.", cache.nbytes),
            ("adapter_budget_bytes", "Limit of that size.", cache.budget),
        ):
            yield GaugeMetricFamily(f"manytune_{name}", text, value)
        used = memory_in_use()
        if used is not None:
            yield GaugeMetricFamily("manytune_memory_bytes", "Memory of the server's process.", used)
        for name, text, count in (
            ("steps", "Forwards of the model.", engine.steps),
            (
                "prefix_cached_tokens",
                "Prompt tokens that were taken from cached prefixes.",
                engine.cached_tokens,
            ),
            ("drafted_tokens", "Tokens of answers that were guessed and read.", engine.drafted_tokens),
            ("accepted_tokens", "Guessed tokens that were right.", engine.accepted_tokens),
            ("adapter_hits", "Requests that found their adapter in memory.", cache.hits),
            ("adapter_loads", "Loads of adapters into memory.", cache.misses + cache.prefetched),
            ("adapter_evictions", "Adapters evicted from memory.", cache.evictions),
            ("adapter_load_seconds", "Time spent loading adapters.", cache.load_seconds),
        ):
            yield CounterMetricFamily(f"manytune_{name}", text, count)
        yield store_reachable(self._adapters.store_names.unreachable)


def store_reachable(why_not: str | None) -> Metric:
    """Whether the store can be read, as a metric; None if it can."""
    text = "1 if the store of adapters could be read when it was last checked, 0 if not."
    return GaugeMetricFamily("manytune_store_reachable", text, int(why_not is None))
