"""From a recipe's data section to the token ids of each split; rows left out are accounted for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from manytune.data.encode import Encoded, Encoder
from manytune.data.readers import read
from manytune.data.records import Rejected
from manytune.data.splits import Leak, group_key, leaks, split
from manytune.data.templates import Example, render_all
from manytune.errors import DataError
from manytune.training.recipe import DataRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPLIT_SEED = 0  # a constant, so that runs with different training seeds are judged on the same rows


@dataclass(frozen=True)
class Splits:
    """Examples by their use.

    Attributes:
        train: To learn from.
        validation: To measure the loss on while training; may be empty.
        test: To score after training; may be empty.
        left_out: Rows that couldn't be read or rendered.
        leaks: Prompts that occur in more than one split, so that a score partly measures memory.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    left_out: tuple[Rejected, ...]
    leaks: tuple[Leak, ...]


@dataclass(frozen=True)
class TokenSplits:
    """Token ids by their use.

    Attributes:
        train: To learn from.
        validation: To measure the loss on; may be empty.
        left_out: Rows that couldn't be read or rendered, or were too long.
        truncated: How many prompts were cut to `max_length`.
        mode: "chat" if the tokenizer's chat template was used, else "plain".
    """

    train: tuple[Encoded, ...]
    validation: tuple[Encoded, ...]
    left_out: tuple[Rejected, ...]
    truncated: int
    mode: Literal["chat", "plain"]


def read_splits(data: DataRecipe) -> Splits:
    """Read the rows, render them, and divide them as the recipe says.

    Shares are taken from the training rows, by group; the same rows go to the same split in every run.

    Raises:
        DataError: A file or row can't be used, or a split would be empty.
    """
    left_out: list[Rejected] = []

    def examples(specs: Sequence[str], role: str) -> tuple[Example, ...]:
        found: list[Example] = []
        for spec in specs:
            is_file = Path(spec).expanduser().is_file()
            records = read(spec, split=None if is_file else role, on_error=data.on_error)
            rendered = render_all(data.prompt_template(), records.kept, on_error=data.on_error)
            left_out.extend((*records.rejected, *rendered.rejected))
            found.extend(rendered.kept)
        if not found:
            raise DataError(
                f"no usable row is left to {'train on' if role == 'train' else role}", where=", ".join(specs)
            )
        return tuple(found)

    parts = {"train": examples(data.train, "train"), "validation": (), "test": ()}
    shares: dict[str, float] = {}
    for role, wanted in (("validation", data.validation), ("test", data.test)):
        if isinstance(wanted, str):
            parts[role] = examples((wanted,), role)
        elif wanted is not None:
            shares[role] = wanted
    if shares:
        fractions = {"train": 1 - sum(shares.values()), **shares}
        parts.update(split(parts["train"], fractions, key=group_key, seed=_SPLIT_SEED))
    return Splits(**parts, left_out=tuple(left_out), leaks=leaks(parts))


def encode_splits(splits: Splits, data: DataRecipe, tokenizer: PreTrainedTokenizerBase) -> TokenSplits:
    """Turn the training and validation examples into token ids.

    Raises:
        DataError: A row is too long and the recipe says that this is an error, or no row is left to train
            on.
    """
    encoder = Encoder(tokenizer, max_length=data.max_length, overflow=data.overflow)
    train = encoder.encode_all(splits.train)
    validation = encoder.encode_all(splits.validation)
    if not train.kept:
        raise DataError(
            f"all {len(splits.train)} training rows are longer than data.max_length {data.max_length}; raise it, "
            "or set data.overflow to truncate_prompt"
        )
    return TokenSplits(
        train.kept,
        validation.kept,
        (*splits.left_out, *train.dropped, *validation.dropped),
        train.truncated + validation.truncated,
        encoder.mode,
    )


def content_hash(sequences: Sequence[Encoded]) -> str:
    """A hash of the token ids and their order: what a resumed run must find unchanged."""
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(f"{sequence.prompt_ids}{sequence.completion_ids}".encode())
    return digest.hexdigest()
