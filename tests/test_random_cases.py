"""Which cells of a matrix `make test` runs."""

from itertools import combinations, product

import pytest
from tests import random_cases
from tests.random_cases import covering, pairwise, some

CELLS = [cell for cell in product("abcd", range(5), ("x", "y", "z")) if cell[:2] != ("a", 0)]


def pairs(cells: list[tuple[object, ...]]) -> set[object]:
    return {pair for cell in cells for pair in combinations(enumerate(cell), 2)}


def test_few_cells_have_every_pair_of_properties_that_any_cell_has() -> None:
    chosen = pairwise(CELLS, tuple)
    assert pairs(chosen) == pairs(CELLS)
    assert 4 * 5 - 1 <= len(chosen) < len(CELLS) / 2
    assert chosen == [cell for cell in CELLS if cell in chosen]


@pytest.mark.parametrize("deep", [False, True])
def test_a_deep_run_has_all_of_them(deep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_cases, "DEEP", deep)
    assert (covering(CELLS, tuple) == CELLS) is deep
    assert some("abc", "c", "a") == (list("abc") if deep else ["a", "c"])
