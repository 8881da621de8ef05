"""A vocabulary of bytes and some longer tokens, with special ones, and answers drawn at random from what is allowed."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import torch
from tests.chat_templates import tokenizer_of

from manytune.engine.constraints.compiled import CompiledGrammar, GrammarCache
from manytune.engine.constraints.grammar import Grammar
from manytune.engine.constraints.vocabulary import Vocabulary

SIZE = len(tokenizer_of(None)) + 7
END = 1
_CLOSING = ('"', "}", "]")


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(tokenizer_of(None), SIZE, [END])


@cache
def texts() -> dict[int, bytes]:
    """The bytes of the tokens that aren't special, read from the vocabulary by hand."""
    tokenizer = tokenizer_of(None)
    letters = {letter: byte for byte, letter in _bytes_to_unicode().items()}
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    names = ((token, tokenizer.convert_ids_to_tokens(token)) for token in range(len(tokenizer)))
    return {token: bytes(letters[one] for one in name) for token, name in names if token not in special}


def compiled(grammar: Grammar) -> CompiledGrammar:
    return GrammarCache(vocabulary()).compile(grammar)


def allowed_after(grammar: Grammar, text: str) -> set[int]:
    """The tokens that may follow a text, the end token among them if the text is complete."""
    matcher = compiled(grammar).start()
    for byte in text.encode():
        matcher.accept(next(token for token, content in texts().items() if content == bytes([byte])))
    assert not matcher.error
    found = set(matcher.allowed().nonzero().flatten().tolist())
    return found | ({END} if matcher.may_end else set())


def accepts(grammar: Grammar, text: str) -> bool:
    """Whether a text is an answer."""
    tokenizer = tokenizer_of(None)
    matcher = compiled(grammar).start()
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        if not matcher.allowed()[token]:
            return False
        matcher.accept(token)
    return matcher.may_end


def drawn(grammar: Grammar, draw: random.Random, longest: int = 800) -> tuple[str, bool]:
    """An answer that is drawn token by token, and whether it is complete; what closes something is drawn often."""
    matcher, content = compiled(grammar).start(), b""
    closing = {token for token, one in texts().items() if one.decode(errors="replace").endswith(_CLOSING)}
    for _ in range(longest):
        tokens: Any = matcher.allowed().nonzero().flatten().tolist()
        if not tokens or (matcher.may_end and draw.random() < 0.5):
            break
        likely = [token for token in tokens if token in closing]
        token = draw.choice(likely if likely and draw.random() < 0.4 else tokens)
        content += texts()[token]
        matcher.accept(token)
    return content.decode(errors="replace"), matcher.may_end


def ones(mask: torch.Tensor) -> set[int]:
    return set(mask.nonzero().flatten().tolist())


def _bytes_to_unicode() -> dict[int, str]:
    """GPT-2's letters for bytes (Radford et al., 2019)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + at) for at, b in enumerate(others)}}
