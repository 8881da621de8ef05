"""A tokenizer's vocabulary as llguidance reads it: the bytes of each token, and which tokens are special."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper

from manytune.engine.constraints.spelling import special_tokens
from manytune.engine.token_bytes import TokenBytes


class Vocabulary:
    """The tokens of a model.

    It takes a tenth of a second or more to make, so make it once. Several threads may use it.

    Args:
        tokenizer: The model's tokenizer; nothing else may use it meanwhile.
        size: Number of tokens that the model knows; there may be more than the tokenizer has.
        end_ids: Tokens that end an answer.

    Attributes:
        size: As given.
        end_ids: As given.
        tokens: What llguidance's matchers take.
    """

    def __init__(self, tokenizer: Any, size: int, end_ids: Collection[int]) -> None:
        self.size = size
        self.end_ids = sorted(end_ids)
        special = {*special_tokens(tokenizer).values(), *end_ids}
        self.tokens = LLTokenizer(
            TokenizerWrapper(_Tokens(tokenizer, size, special, min(end_ids))), n_vocab=size
        )


class _Tokens:
    """The attributes that llguidance reads of a tokenizer. It is never asked to tokenize: that is for forced texts."""

    def __init__(self, tokenizer: Any, size: int, special: Collection[int], end_id: int) -> None:
        read = TokenBytes(tokenizer)
        known = range(len(tokenizer))
        self.tokens = [self._bytes(read, token, special) if token in known else b"" for token in range(size)]
        # A token without text must not be taken for text, and a special one has a name.
        self.special_token_ids = [token for token, content in enumerate(self.tokens) if token in special]
        self.eos_token_id = end_id
        self.bos_token_id = None

    @staticmethod
    def _bytes(read: TokenBytes, token: int, special: Collection[int]) -> bytes:
        content = read.of(token)
        return content or (f"<[{token}]>".encode() if token in special else b"")

    def __call__(self, text: Any) -> list[int]:
        raise NotImplementedError("masks need no tokenizer")
