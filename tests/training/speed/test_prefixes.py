"""Equal prefixes, and only these, have the same number."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from tests.random_cases import cases
from tests.training.batches.tiny import batches

from manytune.training.batches import BUILDERS, builder
from manytune.training.speed.prefixes import PrefixNumbers, count_prefixes


def prefixes(batch: Any) -> list[tuple[int, ...]]:
    """Each token's prefix in a batch, from what attention sees: the rectangles' keys, or the row."""
    ids, positions = batch.input_ids, batch.position_ids
    if batch.layout is None:
        return [
            tuple(ids[row, column - positions[row, column] : column + 1].tolist())
            for row, column in batch.attention_mask.nonzero().tolist()
        ]
    found: dict[int, tuple[int, ...]] = {}
    for rectangle in batch.layout.rectangles:
        for queries, query_positions, keys in zip(
            rectangle.query_rows.tolist(),
            rectangle.query_positions.tolist(),
            rectangle.key_rows.tolist(),
            strict=True,
        ):
            for query, position in zip(queries, query_positions, strict=True):
                found[query] = tuple(ids[0, keys[: position + 1]].tolist())
    return [found[row] for row in range(ids.shape[1])]


@pytest.mark.parametrize("layout", BUILDERS)
@given(first=batches(), second=batches())
@settings(max_examples=cases(15), deadline=None)
def test_a_number_belongs_to_one_prefix_in_every_batch(layout: str, first: Any, second: Any) -> None:
    numbers = PrefixNumbers()
    numbered: dict[int, tuple[int, ...]] = {}
    for sequences in (first, second):
        batch = builder(layout)(sequences, pad_id=0)
        real = slice(None) if batch.attention_mask is None else batch.attention_mask.bool()
        tokens, positions = (x[real].flatten().tolist() for x in (batch.input_ids, batch.position_ids))
        for number, prefix in zip(numbers.of(tokens, positions), prefixes(batch), strict=True):
            assert numbered.setdefault(number, prefix) == prefix
    assert len(set(numbered.values())) == len(numbered) == len(numbers)
    assert sorted(numbered) == list(range(len(numbers)))
    assert count_prefixes([*first, *second]) == len(numbers)


def test_a_prefix_that_begins_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match="position 2 follows a prefix of 1 tokens"):
        PrefixNumbers().of([5, 6], [0, 2])


def test_nothing_has_no_prefixes() -> None:
    assert count_prefixes([]) == 0
