"""One worker as a process: started, asked what it serves, and ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from manytune.errors import ServeError
from manytune.replicas.contract import Facts
from manytune.replicas.worker import Order

_COMMAND = (sys.executable, "-m", "manytune.replicas.worker")
_LOOK_SECONDS = 0.05
_END_SECONDS = 5  # for what a worker does after its answers have ended


class Worker:
    """A worker's process. To be used on one event loop.

    Args:
        process: The process.
        facts: What it serves.
        order: What it was asked to do.
    """

    def __init__(self, process: asyncio.subprocess.Process, facts: Facts, order: Order) -> None:
        self._process = process
        self._order = order
        self.facts = facts

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @classmethod
    async def start(cls, order: Order, *, threads: int) -> Worker:
        """Start one, and wait until it takes requests.

        Args:
            order: What it is to do.
            threads: Over how many cores its products are spread, if the environment doesn't say.

        Raises:
            ServeError: It couldn't.
        """
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        Path(order.socket).unlink(missing_ok=True)
        process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl+C is for the front, which ends its workers when their answers are complete
        )
        try:
            return cls(process, await _facts_of(process, order), order)
        except BaseException:
            await _kill(process)
            raise

    async def wait(self) -> str:
        """Wait until it has ended; how it ended."""
        return _how(await self._process.wait())

    async def end(self) -> None:
        """Let its running answers end, and wait until it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), self._order.options.drain_seconds + _END_SECONDS)
        except TimeoutError:
            await _kill(self._process)


async def _facts_of(process: asyncio.subprocess.Process, order: Order) -> Facts:
    assert process.stdin is not None and process.stdout is not None
    with suppress(ConnectionError):
        process.stdin.write(order.to_line())
        await process.stdin.drain()
    line = await process.stdout.readline()
    if not line:
        how = _how(await process.wait())
        raise ServeError(
            f"worker {order.number} couldn't start: it {how}; the reason is above, or in the log."
        )
    found = json.loads(line)
    if "error" in found:
        await process.wait()
        raise ServeError(found["error"])
    while not await _listens(order.socket):
        if process.returncode is not None:
            raise ServeError(f"worker {order.number} couldn't start: it {_how(process.returncode)}.")
        await asyncio.sleep(_LOOK_SECONDS)
    return Facts(**found)


async def _listens(socket: str) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return False
    writer.close()
    return True


async def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
