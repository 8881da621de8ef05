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


def plan_batches(
    sequences: Sequence[TokenSequence],
    *,
    seed: int,
    epoch: int = 0,
    batch_size: int | None = None,
    token_budget: int | None = None,
    layout: str = "shared-prefix",
    group_prefixes: bool = False,
) -> BatchPlan:
    """One epoch's batches: each example in exactly one of them.

    Args:
        sequences: Tokenised examples.
        seed: With `epoch`, decides the order.
        epoch: Number of the epoch; each has an order of its own.
        batch_size: Examples in a batch; the last one may have fewer. Give this or `token_budget`.
        token_budget: The most tokens that the model computes for a batch in the given layout.
        layout: How the batches will be laid out; decides what an example adds to a token budget.
        group_prefixes: Put examples with long common prefixes into the same batch. Fewer tokens are computed;
            the examples of one step are more alike than in random order.

    Returns:
        For each batch the indices of its examples.

    Raises:
        RecipeError: If not exactly one of `batch_size` and `token_budget` is given, or it isn't positive.
        DataError: If one example alone exceeds the token budget.
    """
    if (batch_size is None) == (token_budget is None):
        raise RecipeError("give either a batch size or a token budget, and not both")
    size = batch_size if token_budget is None else token_budget
    if size is None or size < 1:
        raise RecipeError(f"a batch size or token budget has to be at least 1, found {size}")
    generator = np.random.default_rng((seed, epoch))
    order = (
        prefix_order(sequences, generator)
        if group_prefixes
        else generator.permutation(len(sequences)).tolist()
    )
    if token_budget is not None:
        batches = _within_budget(order, sequences, token_budget, layout)
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


def _within_budget(
    order: Sequence[int], sequences: Sequence[TokenSequence], budget: int, layout: str
) -> list[tuple[int, ...]]:
    """Cut an order wherever the next example would exceed the budget."""
    batches: list[tuple[int, ...]] = []
    members: list[int] = []
    size = _COMPUTED[layout]()
    for index in order:
        sequence = sequences[index]
        inputs = (*sequence.prompt_ids, *sequence.completion_ids)[:-1]
        if len(inputs) > budget:
            raise DataError(
                f"the sequence has {len(inputs)} input tokens, and the token budget of a batch is {budget}; "
                "raise the budget or limit the length of sequences",
                where=f"{sequence.source}:{sequence.row}",
            )
        if members and size.with_another(inputs) > budget:
            batches.append(tuple(members))
            members, size = [], _COMPUTED[layout]()
        members.append(index)
        size.add(inputs)
    return [*batches, tuple(members)] if members else batches


class _Padded:
    """Tokens computed by a padded batch: rows times the longest."""

    def __init__(self) -> None:
        self._rows = self._longest = 0

    def with_another(self, inputs: tuple[int, ...]) -> int:
        return (self._rows + 1) * max(self._longest, len(inputs))

    def add(self, inputs: tuple[int, ...]) -> None:
        self._rows += 1
        self._longest = max(self._longest, len(inputs))


class _PaddingFree:
    """Tokens computed by a padding-free batch: the sum of the lengths."""

    def __init__(self) -> None:
        self._tokens = 0

    def with_another(self, inputs: tuple[int, ...]) -> int:
        return self._tokens + len(inputs)

    def add(self, inputs: tuple[int, ...]) -> None:
        self._tokens = self.with_another(inputs)


class _SharedPrefix:
    """Tokens computed by a shared-prefix batch: the nodes of the trie, kept as its sorted sequences."""

    def __init__(self) -> None:
        self._sorted: list[tuple[int, ...]] = []
        self._nodes = 0

    def with_another(self, inputs: tuple[int, ...]) -> int:
        place = bisect_left(self._sorted, inputs)
        # The longest common prefix with any sequence is the one with a neighbour in sorted order.
        neighbours = self._sorted[max(place - 1, 0) : place + 1]
        shared = max((common_prefix(inputs, other) for other in neighbours), default=0)
        return self._nodes + len(inputs) - shared

    def add(self, inputs: tuple[int, ...]) -> None:
        self._nodes = self.with_another(inputs)
        self._sorted.insert(bisect_left(self._sorted, inputs), inputs)


_COMPUTED: dict[str, type[_Padded] | type[_PaddingFree] | type[_SharedPrefix]] = {
    "padded": _Padded,
    "padding-free": _PaddingFree,
    "shared-prefix": _SharedPrefix,
}
