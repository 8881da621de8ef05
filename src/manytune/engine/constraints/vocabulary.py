"""A tokenizer's vocabulary as llguidance reads it: the bytes of each token, and which tokens are special."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper

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
        tokens: What llguidance's matchers take.
    """

    def __init__(self, tokenizer: Any, size: int, end_ids: Collection[int]) -> None:
        self.size = size
        added = tokenizer.added_tokens_decoder
        self._special = {token.content: number for number, token in added.items() if token.special}
        special = {*self._special.values(), *end_ids}
        self.tokens = LLTokenizer(
            TokenizerWrapper(_Tokens(tokenizer, size, special, min(end_ids))), n_vocab=size, slices=None
        )

    def spelled(self, text: str) -> str:
        """A text as a grammar's rule spells it: special tokens by their numbers, the rest in quotes.

        Args:
            text: It must not be empty.
        """
        parts: list[str] = []
        while text:
            places = {text.find(name): name for name in sorted(self._special, key=len) if name in text}
            first = min(places, default=len(text))
            if first:
                parts.append(json.dumps(text[:first]))
                text = text[first:]
            else:
                name = places[0]
                parts.append(f"<[{self._special[name]}]>")
                text = text[len(name) :]
        return " ".join(parts)

    def is_special(self, text: str) -> bool:
        """Whether a text is one special token."""
        return text in self._special


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
