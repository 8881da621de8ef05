"""The measurement: plausible, and as long as it was asked to be."""

import time

import pytest
import torch

from manytune.demo import machine
from manytune.demo.machine import measure


def test_it_measures_for_about_as_long_as_it_is_asked_to() -> None:
    started = time.perf_counter()
    found = measure(seconds=0.2, device="cpu")
    assert 0.2 <= time.perf_counter() - started < 5
    assert found.gflops > 0.1
    assert (found.device, found.threads) == ("cpu", torch.get_num_threads())


def test_speed_is_operations_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))  # a second passes between any two looks at the clock
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(ticks))
    rounds: list[int] = []
    monkeypatch.setattr(machine, "_multiply", lambda pairs, device: rounds.append(len(pairs)))
    found = measure(seconds=3.0, device="cpu")
    measured = len(rounds) - 1  # the first isn't
    seconds = measured + 2  # looks: at the start, before each round, when time is up, at the end
    operations = 2 * 512 * (576 * 1536 * 2 + 576 * 576)
    assert found.gflops == pytest.approx(operations * measured / seconds / 1e9)
