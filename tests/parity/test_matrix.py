"""The same scripts with manytune and with the installed HF PEFT: method × model × operation, and odd options.

`make test` runs the cells in which every two of method, model and operation meet, and all scripts with odd options;
`make test-deep` runs all cells. What differs on purpose is an entry of the table in `docs/migrating-from-peft.md`, and
every entry is needed by a cell.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from tests.parity.bases import PACKED
from tests.parity.calls import CALLS
from tests.parity.cells import Cell, cells, differing
from tests.parity.differences import LATER, MATRIX, OF_LATER, OF_PACKED, cells_of, entries, listed
from tests.random_cases import covering

CELLS = list(cells())
CHOSEN = [
    *covering((cell for cell in CELLS if cell.place), lambda cell: cell.place),
    *(cell for cell in CELLS if cell.place is None),
]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("cell", CHOSEN, ids=str)
def test_both_libraries_give_the_same_but_for_what_the_page_lists(cell: Cell) -> None:
    page = listed()
    unlisted = {
        observation: how
        for observation, how in differing(cell).items()
        if not any(entry in page for entry in entries(cell.name, observation))
    }
    assert not unlisted


@pytest.mark.parametrize(
    "entry",
    [
        entry
        for entry in listed()
        if (PACKED or entry not in OF_PACKED) and (entry not in OF_LATER or entry in LATER)
    ],
)
def test_each_difference_that_the_page_lists_is_there(entry: str) -> None:
    patterns = cells_of(entry)
    assert patterns, f"no cell needs {entry!r}: the page lists what isn't different"
    for pattern in patterns:
        own = [cell for cell in CELLS if fnmatchcase(cell.name, pattern)]
        own.sort(key=lambda cell: cell not in CHOSEN)  # what they find is known already
        assert any(
            entry in entries(cell.name, observation) for cell in own for observation in differing(cell)
        ), f"{pattern}: nothing differs there any more"


def test_cells_name_entries_of_the_page_only() -> None:
    assert {*MATRIX, *OF_PACKED, *OF_LATER, *(entry for call in CALLS for entry in call.differs)} <= set(
        listed()
    )
