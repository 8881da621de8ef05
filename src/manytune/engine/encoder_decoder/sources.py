"""Keys and values of what encoders have read, by sequence, and those of equal inputs."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor

from manytune.engine.kv_cache import KVCache


class Sources:
    """What running sequences attend to, and what is kept of ended ones.

    Equal inputs are read once while one of them runs, and afterwards as long as it is within the budget; the least
    recently used are dropped first.

    Args:
        cache: Keys and values by row, in the order of the decoder's cache.
        budget: Tokens to keep of ended sequences; 0 for none.
    """

    def __init__(self, cache: KVCache, *, budget: int) -> None:
        self.cache = cache
        self._budget = budget
        self._key: dict[str, bytes] = {}  # of each sequence that can be read from
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self.kept_tokens = 0

    def add(self, sequence: str, key: bytes, tokens: int) -> bool:
        """Give a sequence a row; returns whether an equal input was known, whose keys and values it has then."""
        self.cache.add(sequence, tokens)
        values = self._kept.get(key)
        if values is not None:
            self._kept.move_to_end(key)
        else:
            other = next((name for name, own in self._key.items() if own == key), None)
            values = None if other is None else self.cache.read(other, self.cache.length(other))
        if values is None:
            return False
        self.write(sequence, key, values)
        return True

    def write(self, sequence: str, key: bytes, values: Tensor, *, is_shared: bool = True) -> None:
        """Fill a sequence's row.

        Args:
            sequence: The sequence.
            key: Of its input.
            values: (layers, 2, heads, tokens, head_dim).
            is_shared: Whether equal inputs may have them, too.
        """
        self.cache.write(sequence, values)
        if is_shared:
            self._key[sequence] = key

    def remove(self, sequence: str) -> None:
        """Free a sequence's row, and keep what was in it."""
        key = self._key.pop(sequence, None)
        if key is not None and key not in self._kept and key not in self._key.values():
            self._keep(key, sequence)
        if sequence in self.cache:  # not if there wasn't enough memory for its row
            self.cache.remove(sequence)

    def check_integrity(self) -> None:
        """Assert that the bookkeeping is consistent."""
        self.cache.check_integrity()
        assert all(sequence in self.cache for sequence in self._key)
        assert self.kept_tokens == sum(values.shape[3] for values in self._kept.values()) <= self._budget

    def _keep(self, key: bytes, sequence: str) -> None:
        tokens = self.cache.length(sequence)
        if tokens > self._budget:
            return
        while self.kept_tokens + tokens > self._budget:
            _, dropped = self._kept.popitem(last=False)
            self.kept_tokens -= dropped.shape[3]
        self._kept[key] = self.cache.read(sequence, tokens)
        self.kept_tokens += tokens
