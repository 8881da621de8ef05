"""`--processes`: the same command several times on this machine, by torch's elastic launcher, as torchrun has it."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from manytune.errors import RunError
from manytune.training.distributed.launchers import OF_MANYTUNE

_SIGNALS = [one for one in signal.Signals if one.name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")]
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in Linux's prctl.h
_ENDING = 10  # seconds that processes have to end before they are killed


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run this Python with these arguments in several processes, and wait for them.

    What they print is printed. When one fails or is killed, the others are ended.

    Args:
        arguments: Python's, such as `-m manytune train recipe.yaml`.
        processes: How many.

    Returns:
        The exit status: 0, or that of the process that failed first.

    Raises:
        RunError: A process was killed.
        KeyboardInterrupt: This process was interrupted; the others have ended.
        SystemExit: It was ended by SIGTERM; the others have ended, too.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with (
        tempfile.TemporaryDirectory(prefix="manytune-processes-") as logs,
        _threads(processes),
        _own_handlers(),
    ):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=f"{OF_MANYTUNE}{uuid.uuid4().hex}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            shutdown_timeout=_ENDING,
            signals_to_handle=",".join(number.name for number in _SIGNALS),
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        _silence()
        try:
            elastic_launch(config, sys.executable)(*arguments)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode >= 0:
                return failure.exitcode
            raise RunError(
                f"process {rank} of {processes} was killed by {signal.Signals(-failure.exitcode).name}, and the others "
                "were ended. If there was too little memory, start fewer processes or set a smaller "
                "training.batch_size. --resume continues after the last checkpoint."
            ) from None
        except SignalException as ended:
            if ended.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(128 + ended.sigval) from None
    return 0


def end_with_launcher() -> None:
    """Let the system end this process when the one that started it ends, even by SIGKILL. Linux alone can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, int(signal.SIGTERM))


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Put back how this process takes signals, which the launcher changes."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _threads(processes: int) -> Iterator[None]:
    """Divide the cores among processes that are started in this block, unless the user has."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = str(max(1, cores // processes))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def _silence() -> None:
    """Keep the launcher's own log from repeating what the processes say."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
