"""Token prefixes by number: equal prefixes, and only these, have the same one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from manytune.token_prefixes import common_prefix
from manytune.training.batches import TokenSequence

ENTRY_BYTES = 150  # what a prefix takes in the dictionary of `PrefixNumbers`, at most


class PrefixNumbers:
    """Numbers prefixes from 0, in the order in which they first occur.

    A trie, held as a dictionary: the number of a prefix without its last token, and that token, give its number.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def of(self, tokens: Sequence[int], positions: Sequence[int]) -> list[int]:
        """The numbers of the prefixes that end at each of these tokens.

        Args:
            tokens: Sequences end to end, or the depth-first rows of their trie, as every batch layout has them.
            positions: Each token's position in its own sequence; the token before it in that sequence is the last one
                before it with the position before its own.
        """
        numbers = self._numbers
        path: list[int] = []
        found = []
        for token, position in zip(tokens, positions, strict=True):
            del path[position:]
            if len(path) != position:
                raise ValueError(
                    f"position {position} follows a prefix of {len(path)} tokens, so it doesn't follow from it"
                )
            parent = path[-1] + 1 if path else 0
            path.append(numbers.setdefault(parent << 32 | token, len(numbers)))
            found.append(path[-1])
        return found


def count_prefixes(sequences: Iterable[TokenSequence]) -> int:
    """How many distinct prefixes the inputs of these sequences have; the last token of each is no input."""
    before: tuple[int, ...] = ()
    count = 0
    for tokens in sorted((*s.prompt_ids, *s.completion_ids[:-1]) for s in sequences):
        count += len(tokens) - common_prefix(before, tokens)
        before = tokens
    return count
