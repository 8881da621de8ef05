"""The measurement: a positive speed, over as many rounds as there is time for."""

import itertools

import pytest
import torch

from manytune.demo import machine
from manytune.demo.machine import measure


def test_it_says_what_it_measured_and_where() -> None:
    found = measure(seconds=0.0, device="cpu")  # a round at least
    assert 0 < found.gflops < float("inf")
    assert (found.device, found.threads) == ("cpu", torch.get_num_threads())


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rounds that are computed, where a second passes between any two looks at the clock."""
    ticks = itertools.count()
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(ticks))
    found: list[int] = []
    monkeypatch.setattr(machine, "_multiply", lambda pairs, device: found.append(len(pairs)))
    return found


@pytest.mark.parametrize("seconds", [1, 3, 10])
def test_it_goes_on_until_the_time_is_over(seconds: int, rounds: list[int]) -> None:
    measure(seconds=float(seconds), device="cpu")
    # One isn't measured, and one is measured however little time there is. The look at which time is up begins none.
    assert len(rounds) == 1 + max(1, seconds - 1)


def test_speed_is_operations_over_time(rounds: list[int]) -> None:
    found = measure(seconds=3.0, device="cpu")
    measured = len(rounds) - 1  # the first isn't
    seconds = measured + 2  # looks: at the start, before each round, when time is up, at the end
    operations = 2 * 512 * (576 * 1536 * 2 + 576 * 576)
    assert found.gflops == pytest.approx(operations * measured / seconds / 1e9)
