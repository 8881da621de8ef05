"""Prefixes of prompts whose keys and values are kept for later prompts that begin with the same tokens.

A token's keys and values depend on the adapter and on every token before it; and one tenant must not learn from timing
what another has asked. So a prefix is found only by the same tenant, adapter content and tokens. Prefixes are cut to
whole blocks of tokens, and the least recently used are evicted.
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
class _Prefix:
    keys: tuple[bytes, ...]  # one for each block, a hash of everything up to its end
    values: Tensor
    virtual_tokens: int
    tokens: int


class PrefixCache:
    """Keys and values of prefixes, within a budget.

    Args:
        budget: Tokens to keep; 0 for none.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        # By their last key, least recently used first.
        self._prefixes: OrderedDict[bytes, _Prefix] = OrderedDict()
        self._holding: dict[bytes, bytes] = {}  # the key of any block to the last key of a prefix that has it
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._prefixes)

    def find(self, keys: Sequence[bytes]) -> tuple[int, Tensor] | None:
        """The longest cached prefix.

        Args:
            keys: Keys of the blocks that may be taken from the cache; see `block_keys`.

        Returns:
            Its length without virtual tokens, and keys and values with those of the virtual tokens before it,
            `(layers, 2, heads, tokens, head_dim)`; or None.
        """
        for number in range(len(keys), 0, -1):
            last = self._holding.get(keys[number - 1])
            if last is not None:
                self._prefixes.move_to_end(last)
                prefix = self._prefixes[last]
                return number * BLOCK, prefix.values[:, :, :, : prefix.virtual_tokens + number * BLOCK]
        return None

    def store(self, keys: Sequence[bytes], *, virtual_tokens: int, read: Callable[[int], Tensor]) -> None:
        """Keep a prompt's whole blocks.

        Args:
            keys: Keys of its blocks.
            virtual_tokens: Positions before the prompt: an adapter's keys and values or embeddings.
            read: Gives a copy of the keys and values of so many positions.
        """
        if not keys or keys[-1] in self._holding:
            return
        tokens = virtual_tokens + len(keys) * BLOCK
        if tokens > self.budget:
            return
        # A stored prefix of this one is redundant.
        for last in [key for key in keys if key in self._prefixes]:
            self._drop(last)
        while self.tokens + tokens > self.budget:
            self._drop(next(iter(self._prefixes)))
        self._prefixes[keys[-1]] = _Prefix(tuple(keys), read(tokens), virtual_tokens, tokens)
        self._holding.update(dict.fromkeys(keys, keys[-1]))
        self.tokens += tokens

    def check_integrity(self) -> None:
        """Assert that the bookkeeping is consistent."""
        assert self.tokens == sum(prefix.tokens for prefix in self._prefixes.values()) <= self.budget
        assert all(last in self._prefixes for last in self._holding.values())
        assert all(key in self._prefixes[last].keys for key, last in self._holding.items())
        assert all(self._holding.get(last) == last for last in self._prefixes)

    def _drop(self, last: bytes) -> None:
        prefix = self._prefixes.pop(last)
        self.tokens -= prefix.tokens
        for key in prefix.keys:
            if self._holding.get(key) == last:
                del self._holding[key]


def block_keys(tenant: str, digest: str | None, prompt: Sequence[int]) -> tuple[bytes, ...]:
    """For each whole block of a prompt, a hash of the tenant, the adapter's digest and all tokens up to its end."""
    state = hashlib.sha256(repr((tenant, digest)).encode())
    keys = []
    for end in range(BLOCK, len(prompt) + 1, BLOCK):
        state.update(array("q", prompt[end - BLOCK : end]).tobytes())
        keys.append(state.copy().digest())
    return tuple(keys)
