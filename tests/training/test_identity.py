from __future__ import annotations

from pathlib import Path

import pytest
import torch

from manytune.errors import RunError
from manytune.training.distributed.processes import ALONE, Processes
from manytune.training.identity import check_agreement, check_identity
from manytune.training.loop.counters import Counters
from manytune.training.resume import Checkpoint, Position

IDENTITY: dict[str, object] = {"train": "a", "validation": "b", "base": "c", "adapter": None, "processes": 3}
IDENTITY |= {"threads": 1, "torch": "2", "transformers": "5", "manytune": "1"}


def test_a_run_that_goes_on_with_another_number_of_processes_says_what_that_changes() -> None:
    for before, count in (({"processes": 2}, "2"), ({}, "1")):  # earlier releases knew one process
        kept = {key: value for key, value in IDENTITY.items() if key != "processes"}
        checkpoint = Checkpoint(Path("step"), Position(1, Counters(), 0, 0), {**kept, **before}, {})
        lines: list[str] = []
        check_identity(checkpoint, IDENTITY, lines.append)
        assert len(lines) == 1 and f"had {count} processes before the interruption and has 3 now" in lines[0]
    same = Checkpoint(Path("step"), Position(1, Counters(), 0, 0), dict(IDENTITY), {})
    check_identity(same, IDENTITY, lines.append)
    assert len(lines) == 1
    check_identity(same, {**IDENTITY, "sharded": True}, lines.append)
    assert "weights were not sharded over processes before the interruption and are now" in lines[1]


def test_processes_that_read_other_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_agreement(IDENTITY, ALONE)
    own: list[torch.Tensor] = []
    with monkeypatch.context() as patched:
        patched.setattr(Processes, "gather", lambda _, tensor: own.append(tensor) or [tensor])
        check_agreement({**IDENTITY, "validation": "other"}, ALONE)
        patched.setattr(Processes, "gather", lambda _, tensor: [tensor, own[0]])
        with pytest.raises(
            RunError, match=r"process 1 of 2 doesn't have the validation rows that process 0 has"
        ):
            check_agreement(IDENTITY, Processes(count=2))
