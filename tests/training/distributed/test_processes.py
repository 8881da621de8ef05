from __future__ import annotations

import pytest
import torch
from torch import distributed

from manytune.errors import RunError
from manytune.training.distributed.launchers import Launched
from manytune.training.distributed.processes import ALONE, Processes, check_devices, join


def test_one_process_tells_itself_what_it_said() -> None:
    assert join(None) is ALONE
    assert ALONE.sum([1, 2.5]) == [1, 2.5] and ALONE.largest(3) == 3
    assert ALONE.from_first("é") == "é" and ALONE.fails_first()
    assert torch.equal(ALONE.gather(torch.ones(2))[0], torch.ones(2))


def test_an_error_is_said_by_the_first_process_that_fails_on_each_machine_and_after_each_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = distributed.TCPStore("127.0.0.1", 0, is_master=True)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(held.port))
    fails_first = []
    for machine, restarts in (("0", "0"), ("0", "0"), ("1", "0"), ("1", "0"), ("0", "1")):
        monkeypatch.setenv("GROUP_RANK", machine)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        fails_first.append(Processes(rank=1, count=4).fails_first())
    assert fails_first == [True, False, True, False, True]


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_devices(1)
    with pytest.raises(
        RunError, match=r"2 were started where torch finds 1\. Start fewer, or set training\.device"
    ):
        join(Launched(rank=1, count=2, local_rank=1))
