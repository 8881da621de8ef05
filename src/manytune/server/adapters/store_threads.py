"""Threads for what reads the store, apart from those for everything else: a store may hang."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Result = TypeVar("_Result")
_THREADS = 8


class StoreThreads:
    """When all of them wait for a disk or a network, requests for adapters wait, and those for the base don't."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="store")

    async def run(self, call: Callable[[], _Result]) -> _Result:
        """What a call returns or raises."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)
