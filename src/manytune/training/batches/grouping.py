"""Which examples go into which batch, and in which order the batches come.

Everything is a function of the sequences, the seed and the epoch, so a resumed run sees the same batches.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from manytune.errors import DataError, RecipeError
from manytune.token_prefixes import common_prefix
from manytune.training.batches.batch import TokenSequence

BatchPlan = tuple[tuple[int, ...], ...]


Row = Sequence[TokenSequence]
"""Sequences that go into the same batch; as a rule one, see `rows_of_one`."""


def rows_of_one(sequences: Sequence[TokenSequence]) -> list[Row]:
    """Each sequence as a row of its own."""
    return [(sequence,) for sequence in sequences]


def plan_batches(
    rows: Sequence[Row],
    *,
    seed: int,
    epoch: int = 0,
    batch_size: int | None = None,
    token_budget: int | None = None,
    layout: str = "shared-prefix",
    group_prefixes: bool = False,
) -> BatchPlan:
    """One epoch's batches: each row in exactly one of them.

    Args:
        rows: The sequences of each row.
        seed: With `epoch`, decides the order.
        epoch: Number of the epoch; each has an order of its own.
        batch_size: Rows in a batch; the last one may have fewer. Give this or `token_budget`.
        token_budget: The most tokens that the model computes for a batch in the given layout.
        layout: How the batches will be laid out; decides what a row adds to a token budget.
        group_prefixes: Put rows with long common prefixes into the same batch; a row's first sequence counts. Fewer
            tokens are computed; the rows of one step are more alike than in random order.

    Returns:
        For each batch the indices of its rows.

    Raises:
        RecipeError: If not exactly one of `batch_size` and `token_budget` is given, or it isn't positive.
        DataError: If one row alone exceeds the token budget.
    """
    if (batch_size is None) == (token_budget is None):
        raise RecipeError("give either a batch size or a token budget, and not both")
    size = batch_size if token_budget is None else token_budget
    if size is None or size < 1:
        raise RecipeError(f"a batch size or token budget has to be at least 1, found {size}")
    generator = np.random.default_rng((seed, epoch))
    order = (
        prefix_order([row[0] for row in rows], generator)
        if group_prefixes
        else generator.permutation(len(rows)).tolist()
    )
    if token_budget is not None:
        batches = cut_within(token_budget, order, rows, layout)
    else:
        batches = [tuple(order[start : start + size]) for start in range(0, len(order), size)]
    if group_prefixes:  # neighbours in the order are alike; successive steps should not be
        batches = [batches[i] for i in generator.permutation(len(batches))]
    return tuple(batches)


def prefix_order(sequences: Sequence[TokenSequence], generator: np.random.Generator) -> list[int]:
    """A random order in which sequences with a common prefix are next to each other.

    It is the depth-first order of the sequences' trie with its branches in random order: the alphabetical
    order after a random renaming of the tokens. Equal sequences come in random order.

    Args:
        sequences: Tokenised examples.
        generator: Source of randomness; advanced.
    """
    tokens = [(*s.prompt_ids, *s.completion_ids) for s in sequences]
    vocabulary = sorted({token for ids in tokens for token in ids})
    renamed = dict(zip(vocabulary, generator.permutation(len(vocabulary)).tolist(), strict=True))
    ties = generator.permutation(len(tokens)).tolist()
    keys = [(tuple(map(renamed.__getitem__, ids)), tie) for ids, tie in zip(tokens, ties, strict=True)]
    return sorted(range(len(tokens)), key=keys.__getitem__)


def computed_tokens(rows: Sequence[Row], layout: str) -> int:
    """How many tokens the model computes for a batch of these rows in a layout."""
    size = _COMPUTED[layout]()
    for row in rows:
        size.add(_inputs(row))
    return size.tokens


def cut_within(budget: int, order: Sequence[int], rows: Sequence[Row], layout: str) -> list[tuple[int, ...]]:
    """Cut an order of rows wherever the model would compute more tokens with the next one.

    Args:
        budget: The most tokens that it computes for a batch.
        order: Indices of rows.
        rows: The sequences of each row.
        layout: How the batches will be laid out.

    Raises:
        DataError: One row alone exceeds the budget.
    """
    batches: list[tuple[int, ...]] = []
    members: list[int] = []
    size = _COMPUTED[layout]()
    for index in order:
        inputs = _inputs(rows[index])
        alone = _COMPUTED[layout]()
        alone.add(inputs)
        if alone.tokens > budget:
            raise DataError(
                f"the {'sequence has' if len(inputs) == 1 else f'{len(inputs)} sequences of this row have'} "
                f"{alone.tokens} input tokens, and the token budget of a batch is {budget}; "
                "raise the budget or limit the length of sequences",
                where=f"{rows[index][0].source}:{rows[index][0].row}",
            )
        if members and size.with_another(inputs) > budget:
            batches.append(tuple(members))
            members, size = [], _COMPUTED[layout]()
        members.append(index)
        size.add(inputs)
    return [*batches, tuple(members)] if members else batches


Inputs = Sequence[tuple[int, ...]]


def _inputs(row: Row) -> Inputs:
    return [(*one.prompt_ids, *one.completion_ids)[:-1] for one in row]


class _Padded:
    """Tokens computed by a padded batch: rows times the longest."""

    def __init__(self) -> None:
        self._rows = self._longest = 0

    @property
    def tokens(self) -> int:
        return self._rows * self._longest

    def with_another(self, row: Inputs) -> int:
        return (self._rows + len(row)) * max(self._longest, *map(len, row))

    def add(self, row: Inputs) -> None:
        self._rows += len(row)
        self._longest = max(self._longest, *map(len, row))


class _PaddingFree:
    """Tokens computed by a padding-free batch: the sum of the lengths."""

    def __init__(self) -> None:
        self.tokens = 0

    def with_another(self, row: Inputs) -> int:
        return self.tokens + sum(map(len, row))

    def add(self, row: Inputs) -> None:
        self.tokens = self.with_another(row)


class _SharedPrefix:
    """Tokens computed by a shared-prefix batch: the nodes of the trie, kept as its sorted sequences."""

    def __init__(self) -> None:
        self._sorted: list[tuple[int, ...]] = []
        self.tokens = 0

    def with_another(self, row: Inputs) -> int:
        if len(row) == 1:
            return self.tokens + self._new(row[0])
        tried = _SharedPrefix()
        tried._sorted, tried.tokens = self._sorted.copy(), self.tokens
        tried.add(row)
        return tried.tokens

    def add(self, row: Inputs) -> None:
        for sequence in row:
            self.tokens += self._new(sequence)
            self._sorted.insert(bisect_left(self._sorted, sequence), sequence)

    def _new(self, sequence: tuple[int, ...]) -> int:
        """How many of its tokens no other sequence has."""
        place = bisect_left(self._sorted, sequence)
        # The longest common prefix with any sequence is the one with a neighbour in sorted order.
        neighbours = self._sorted[max(place - 1, 0) : place + 1]
        return len(sequence) - max((common_prefix(sequence, other) for other in neighbours), default=0)


_COMPUTED: dict[str, type[_Padded] | type[_PaddingFree] | type[_SharedPrefix]] = {
    "padded": _Padded,
    "padding-free": _PaddingFree,
    "shared-prefix": _SharedPrefix,
}
