"""Tokens that a model's generation settings force: BART's answers begin with one, and end with one at their limit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from manytune.engine.base_model import forced_ids


class ForcedTokens:
    """The masks of forced tokens, as transformers' generation applies them.

    Args:
        model: The model; only an encoder-decoder's tokens are forced.
        vocabulary: Number of its tokens.
    """

    def __init__(self, model: object, vocabulary: int) -> None:
        first, last = forced_ids(model)
        self._first = None if first is None else _only(first, vocabulary)
        self._last = None if last is None else _only(last, vocabulary)

    def masks(self, max_new_tokens: int, *, continues: bool) -> Mapping[int, Tensor]:
        """For each place of an answer with a forced token, which token may be there, (vocabulary,), bool.

        Args:
            max_new_tokens: Limit on the answer.
            continues: Whether the answer goes on after an end token, so that none is forced at the limit.
        """
        found = {} if self._first is None else {0: self._first}
        if self._last is not None and not continues:
            found[max_new_tokens - 1] = self._last
        return found


def _only(token: int, vocabulary: int) -> Tensor:
    mask = torch.zeros(vocabulary, dtype=torch.bool)
    mask[token] = True
    return mask
