"""Work in a process of its own in which something goes wrong: a fork of one that has imported everything once."""

from __future__ import annotations

import gc
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from tests.faults.injector import Fault, Injector
from tests.forkserver import PROCESSES

#: Seconds after which a process hangs; what it does takes less than one where nothing else runs.
PATIENCE = 300.0

#: Receives what an act has got done, and so promises.
Acknowledge = Callable[[Any], None]
Act = Callable[[Path, Acknowledge], None]


@dataclass
class Ended:
    """How a process ended.

    Attributes:
        how: It did its work, refused it with a sentence, was killed, or failed with a traceback.
        said: The sentence or the traceback.
        acknowledged: What it had got done, in order.
        points: The injector's, as far as they were sent.
    """

    how: Literal["done", "refused", "killed", "defect"] = "killed"
    said: str = ""
    acknowledged: list[Any] = field(default_factory=list)
    points: list[str] = field(default_factory=list)


class Child:
    """A process at its work.

    Args:
        act: The work; importable by name.
        root: The directory that it changes, and in which its calls are counted.
        fault: What goes wrong.
        prepare: What is done first, by name, such as a limit that is set.
    """

    def __init__(
        self, act: Act, root: Path, fault: Fault | None = None, prepare: Callable[[], object] | None = None
    ) -> None:
        self._receiver, sender = PROCESSES.Pipe(duplex=False)
        self._process = PROCESSES.Process(target=_work, args=(sender, act, root, fault, prepare))
        self._is_limited = prepare is not None
        self._process.start()
        sender.close()

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def ended(self) -> Ended:
        """Wait for its end.

        Raises:
            AssertionError: It hangs, or ended in a way that nobody asked for.
        """
        found, deadline = Ended(), time.monotonic() + PATIENCE
        while True:
            if not self._receiver.poll(max(0.0, deadline - time.monotonic())):
                self._process.kill()
                raise AssertionError("the process hangs")
            try:
                kind, value = self._receiver.recv()
            except EOFError:
                break
            if kind == "acknowledged":
                found.acknowledged.append(value)
            elif kind == "points":
                found.points = value
            else:
                found.how, found.said = kind, value
        self._process.join()
        self._receiver.close()
        code = self._process.exitcode
        self._process.close()
        # Memory that C++ code isn't given and has no answer to ends the process in one of the last three ways; the
        # third is the dynamic linker's, which has none for a thread's data ("cannot allocate memory ...: ABORT").
        # Another thread may have asked for it first; then it isn't known (255), and what was sent says how it ended.
        short = (-signal.SIGABRT, -signal.SIGSEGV, 127) if self._is_limited else ()
        ends = (0, 255, -signal.SIGKILL, *short)
        assert code in ends, f"exit code {code} {found.said}"
        if code not in (0, 255):
            found.how = "killed"
        return found


def in_child(
    act: Act, root: Path, fault: Fault | None = None, prepare: Callable[[], object] | None = None
) -> Ended:
    """Work in a process, and wait for its end; see `Child`."""
    return Child(act, root, fault, prepare).ended()


def _work(
    sender: Connection, act: Act, root: Path, fault: Fault | None, prepare: Callable[[], object] | None
) -> None:
    import torch

    from manytune.atomic import write_error
    from manytune.errors import ManytuneError

    torch.set_num_threads(1)
    gc.freeze()  # as in tests/conftest.py
    warnings.simplefilter("error")
    # Next to the root, where links to its files can be made.
    with tempfile.TemporaryDirectory(prefix=".spare-", dir=root.parent) as spare:
        tempfile.tempdir = spare  # so that a killed process leaves nothing elsewhere
        injector = Injector(root, fault, Path(spare))
        injector.install()
        if prepare is not None:
            prepare()
        try:
            act(root, lambda what: sender.send(("acknowledged", what)))
            sender.send(("points", injector.points))
            sender.send(("done", ""))
        except ManytuneError as error:
            sender.send(("refused", str(error)))
        except BaseException as error:
            # As the command line does.
            found = write_error(error) if isinstance(error, OSError) else None
            if found is not None:
                sender.send(("refused", str(found)))
            else:
                sender.send(("defect", traceback.format_exc()))
    sys.stdout.flush()
