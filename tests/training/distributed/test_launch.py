"""The launcher, with small scripts in place of trainings: how processes end."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from tests.forkserver import PROCESSES

from manytune.errors import RunError
from manytune.training.distributed.launch import launch

# Rank 1 does what the test is about, when both are there; rank 0 leaves a file if nobody has ended it for a minute.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
rank = os.environ["RANK"]
Path(sys.argv[1], rank).write_text(str(os.getpid()))
while len(os.listdir(sys.argv[1])) < 2: time.sleep(0.01)
if rank == "1": {deed}
time.sleep(60)
Path(sys.argv[1], "outlived").touch()
"""


def pids(directory: Path) -> list[int]:
    return [int(file.read_text() or 0) for file in directory.iterdir()]


def is_running(pid: int) -> bool:
    """Not that it has ended and nobody has asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_process_that_fails_ends_the_others_and_gives_its_exit_status(tmp_path: Path) -> None:
    assert launch(["-c", SCRIPT.format(deed="sys.exit(3)"), str(tmp_path)], 2) == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "0",
        "1",
    ]  # it wasn't the minute that ended rank 0
    assert not any(map(is_running, pids(tmp_path)))


def test_a_process_that_is_killed_ends_the_others_and_is_named(tmp_path: Path) -> None:
    deed = "os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(
        RunError, match=r"process 1 of 2 was killed by SIGKILL, and the others were ended.*--resume"
    ):
        launch(["-c", SCRIPT.format(deed=deed), str(tmp_path)], 2)
    assert not any(map(is_running, pids(tmp_path)))


def test_processes_that_end_well_give_status_0(tmp_path: Path) -> None:
    assert launch(["-c", "import os; assert os.environ['WORLD_SIZE'] == '2'"], 2) == 0


WITH_LAUNCHER = "from manytune.training.distributed.launch import end_with_launcher; end_with_launcher()\n"


def launched_and_waiting(directory: Path, sender: Connection) -> None:
    try:
        launch(["-c", WITH_LAUNCHER + SCRIPT.format(deed="pass"), str(directory)], 2)
    except BaseException as error:
        sender.send(repr(error))


@pytest.mark.parametrize(
    ("number", "raised"),
    [(signal.SIGTERM, "SystemExit(143)"), (signal.SIGINT, "KeyboardInterrupt()"), (signal.SIGKILL, None)],
)
def test_ending_the_launcher_ends_all_processes(
    number: signal.Signals, raised: str | None, tmp_path: Path
) -> None:
    receiver, sender = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=launched_and_waiting, args=(tmp_path, sender))
    process.start()
    sender.close()
    deadline = time.monotonic() + 120
    while len([pid for pid in pids(tmp_path) if pid]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, number)
    if raised is not None:
        assert receiver.recv() == raised
    process.join()
    deadline = time.monotonic() + 60
    while any(map(is_running, pids(tmp_path))):
        assert time.monotonic() < deadline
        time.sleep(0.02)
