"""The tokens with which a tokenizer begins and ends a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "manytune"


def leading_bos(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token before a text; empty if the tokenizer adds none."""
    bos = tokenizer.bos_token_id
    return (bos,) if bos is not None and tokenizer(_PROBE)["input_ids"][:1] == [bos] else ()


def trailing_eos(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token after a text; empty if the tokenizer adds none."""
    eos = tokenizer.eos_token_id
    return (eos,) if eos is not None and tokenizer(_PROBE)["input_ids"][-1:] == [eos] else ()


def once_before(start: tuple[int, ...], ids: tuple[int, ...]) -> tuple[int, ...]:
    """Ids with the token that begins a text, which the text may have itself."""
    return ids if ids[: len(start)] == start else start + ids
