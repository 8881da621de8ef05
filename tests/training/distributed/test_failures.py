from __future__ import annotations

import time

import pytest
from torch.distributed import DistBackendError

from manytune.errors import DataError, RunError
from manytune.training.distributed.failures import said_once
from manytune.training.distributed.processes import ALONE, Processes


@pytest.mark.parametrize(
    ("error", "first", "waits"),
    [
        (DataError("a row"), True, False),
        (DataError("a row"), False, False),
        (OSError(28, "no space"), True, False),  # one that is said in words
        (RuntimeError("Connection closed by peer"), True, True),
        (RuntimeError("Connection closed by peer"), False, True),
    ],
)
def test_the_process_that_fails_first_says_why_and_others_end_in_silence(
    error: Exception, first: bool, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setattr(Processes, "fails_first", lambda _: first)
    with pytest.raises(type(error) if first else SystemExit) as raised, said_once(Processes(rank=1, count=2)):
        raise error
    assert raised.value is error or (isinstance(raised.value, SystemExit) and raised.value.code == 1)
    assert bool(waited) == waits  # the launcher ends those whose partner died


def test_one_process_fails_as_it_always_did() -> None:
    with pytest.raises(RuntimeError), said_once(ALONE):
        raise RuntimeError
    with pytest.raises(KeyboardInterrupt), said_once(ALONE):
        raise KeyboardInterrupt


def test_an_interrupt_is_said_by_the_launcher_or_by_the_first() -> None:
    for processes in (Processes(1, 2), Processes(0, 2, by_manytune=True)):
        with pytest.raises(SystemExit) as raised, said_once(processes):
            raise KeyboardInterrupt
        assert raised.value.code == 130
    with pytest.raises(KeyboardInterrupt), said_once(Processes(0, 2)):
        raise KeyboardInterrupt


def test_a_process_that_has_lost_the_others_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(Processes, "fails_first", lambda _: True)
    said = r"process 1 of 2 can't reach the others.*--resume continues"
    lost = (
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1"
    )
    for error in (RuntimeError(lost), DistBackendError("NCCL error")):
        with pytest.raises(RunError, match=said), said_once(Processes(rank=1, count=2)):
            raise error
