"""The last hour of a server, for its operator's page: a sample every ten seconds, the oldest of which are forgotten.

Prometheus keeps the same for months; this is what one sees without it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from manytune.free_memory import memory_in_use
from manytune.server.loop import EngineLoop
from manytune.server.traffic import Interval, Traffic, rows
from manytune.store.cache import AdapterCache

SAMPLES = 360

#: What a row of `models` and `keys` has.
COLUMNS = ("requests", "prompt_tokens", "completion_tokens", "first_tokens", "first_seconds")


class History:
    """Samples of what a server did and of its state, at whole multiples of the interval.

    Args:
        traffic: Counts its requests; nothing else may take them.
        loop: Runs the engine.
        cache: Holds the adapters in memory.
        seconds: The interval.
    """

    def __init__(self, traffic: Traffic, loop: EngineLoop, cache: AdapterCache, *, seconds: float) -> None:
        self._traffic = traffic
        self._loop = loop
        self._cache = cache
        self.seconds = seconds
        self._samples: deque[dict[str, Any]] = deque(maxlen=SAMPLES)

    async def run(self) -> None:
        """Take a sample at every interval, until cancelled."""
        while True:
            await asyncio.sleep(self.seconds - time.time() % self.seconds)
            self.sample(time.time())

    def sample(self, now: float) -> None:
        """Take a sample.

        Args:
            now: The time in seconds since 1970; what it is rounded to is the sample's.
        """
        engine, cache, interval = self._loop.counters, self._cache.counters(), self._traffic.take()
        self._samples.append(
            {
                "time": round(now / self.seconds) * self.seconds,
                **_traffic(interval),
                "running": engine.running,
                "waiting": engine.waiting,
                "kv_tokens": engine.kv_tokens,
                "prefix_tokens": engine.prefix_tokens,
                "adapters_resident": cache.resident,
                "adapter_bytes": cache.nbytes,
                "memory_bytes": memory_in_use(),
                "device_bytes": torch.cuda.memory_allocated() if torch.cuda.is_initialized() else None,
            }
        )

    def since(self, after: float) -> dict[str, Any]:
        """The samples after a time, the oldest first, and what they are measured by."""
        return {
            "object": "history",
            "seconds": self.seconds,
            "columns": COLUMNS,
            "kv_budget_tokens": self._loop.counters.kv_budget_tokens,
            "adapter_budget_bytes": self._cache.budget,
            "data": [sample for sample in self._samples if sample["time"] > after],
        }


def _traffic(interval: Interval) -> dict[str, Any]:
    total = interval.total
    return {
        "requests": total.requests,
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "first_token_p50": _quantile(interval.first_times, 0.5),
        "first_token_p95": _quantile(interval.first_times, 0.95),
        "models": rows(interval.models),
        "keys": rows(interval.keys),
    }


def _quantile(times: Sequence[float], share: float) -> float | None:
    """The smallest time that so large a share of them doesn't exceed; None of none."""
    if not times:
        return None
    ordered = sorted(times)
    return round(ordered[math.ceil(share * len(ordered)) - 1], 4)
