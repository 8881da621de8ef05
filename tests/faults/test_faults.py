"""A few faults of each kind; `make faults` injects hundreds."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.faults.plan import Group, groups
from tests.random_cases import DEPTH

#: How many of each. The other methods, experiments and pairs of writers are in `make faults` alone.
_CASES = {
    "training LoRA kill": 1,
    "training LoRA power": 1,
    "training LoRA full": 1,
    "training full kill": 1,
    "two trainers": 1,
    "memory": 1,
    "clock": 1,
    "damaged run": 1,
    "store kill": 3,
    "store cut": 2,
    "store power": 3,
    "store full": 1,
    "store io": 1,
    "damaged store": 2,
    "two servers": 1,
    "partition gone": 1,
    "partition stale": 1,
    "cache full": 1,
    "cache cut": 1,
    "damaged cache": 1,
    "answers power": 1,
    "answers cut": 1,
}
if DEPTH > 1:  # each starts an S3 server; tests/store/remote/test_store_on_s3.py has one
    _CASES |= {"S3 half": 1, "S3 writer lost": 1}


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Group]:
    return {group.name: group for group in groups(tmp_path_factory.mktemp("faults"), seed=1)}


@pytest.mark.parametrize("name", _CASES)
def test_after_a_fault_everything_acknowledged_is_there_and_the_next_command_works(
    name: str, planned: dict[str, Group]
) -> None:
    group = planned[name]
    cases = group.cases()
    wanted = _CASES[name] * DEPTH
    for case in cases[:: max(1, len(cases) // wanted)][:wanted]:
        print(f"{name}/{case}")
        assert group.run(case)


def test_cases_have_names_of_their_own_and_repeat(tmp_path: Path) -> None:
    first, again = groups(tmp_path / "a", seed=3), groups(tmp_path / "b", seed=3)
    names = [group.name for group in first]
    assert len(set(names)) == len(names) and names == [group.name for group in again]
    store = [next(group for group in found if group.name == "store kill").cases() for found in (first, again)]
    assert store[0] == store[1] and len(set(store[0])) == len(store[0]) > 30
