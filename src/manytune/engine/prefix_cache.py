"""Beginnings of prompts whose keys and values are kept for the next prompt that begins so.

What a token's keys and values are depends on the adapter and on every token before it; and one tenant must not learn
from timing what another has asked. So a beginning is found only by the same tenant, adapter content and tokens.
Beginnings are cut to whole blocks of tokens, and the least recently used make room.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

#: Tokens of a block.
BLOCK = 16


@dataclass(frozen=True)
class _Entry:
    keys: tuple[bytes, ...]  # one for each block, of everything up to its end
    values: Tensor
    ahead: int
    tokens: int


class PrefixCache:
    """Keys and values of beginnings, within a budget.

    Args:
        budget: Tokens to keep; 0 for none.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._entries: OrderedDict[bytes, _Entry] = (
            OrderedDict()
        )  # by their last key, least recently used first
        self._holding: dict[bytes, bytes] = {}  # a key of any block to the last key of an entry that has it
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, keys: Sequence[bytes]) -> tuple[int, Tensor] | None:
        """The longest known beginning.

        Args:
            keys: Of the blocks that may be taken from the cache; see `block_keys`.

        Returns:
            Its length, and keys and values of what stands before the prompt and of it, `(layers, 2, heads, tokens,
            size)`; or None.
        """
        for number in range(len(keys), 0, -1):
            last = self._holding.get(keys[number - 1])
            if last is not None:
                self._entries.move_to_end(last)
                entry = self._entries[last]
                return number * BLOCK, entry.values[:, :, :, : entry.ahead + number * BLOCK]
        return None

    def store(self, keys: Sequence[bytes], *, ahead: int, read: Callable[[int], Tensor]) -> None:
        """Keep a prompt's beginning.

        Args:
            keys: Of its blocks.
            ahead: Positions before the prompt: an adapter's prefix and virtual tokens.
            read: Gives a copy of the keys and values of so many positions.
        """
        if not keys or keys[-1] in self._holding:
            return
        tokens = ahead + len(keys) * BLOCK
        if tokens > self.budget:
            return
        # What is a beginning of this one has nothing of its own.
        for last in [key for key in keys if key in self._entries]:
            self._drop(last)
        while self.tokens + tokens > self.budget:
            self._drop(next(iter(self._entries)))
        entry = _Entry(tuple(keys), read(tokens), ahead, tokens)
        self._entries[keys[-1]] = entry
        self._holding.update(dict.fromkeys(keys, keys[-1]))
        self.tokens += tokens

    def check_integrity(self) -> None:
        """Assert that the book is consistent."""
        assert self.tokens == sum(entry.tokens for entry in self._entries.values()) <= self.budget
        assert all(last in self._entries for last in self._holding.values())
        assert all(key in self._entries[last].keys for key, last in self._holding.items())
        assert all(self._holding.get(last) == last for last in self._entries)

    def _drop(self, last: bytes) -> None:
        entry = self._entries.pop(last)
        self.tokens -= entry.tokens
        for key in entry.keys:
            if self._holding.get(key) == last:
                del self._holding[key]


def block_keys(tenant: str, adapter: str | None, prompt: Sequence[int]) -> tuple[bytes, ...]:
    """For each whole block of a prompt, a hash of the tenant, the adapter's content and all tokens up to its end."""
    state = hashlib.sha256(repr((tenant, adapter)).encode())
    keys = []
    for end in range(BLOCK, len(prompt) + 1, BLOCK):
        state.update(array("q", prompt[end - BLOCK : end]).tobytes())
        keys.append(state.copy().digest())
    return tuple(keys)
