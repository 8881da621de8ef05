"""From a classifier's examples to token ids: the tokenizer's own special tokens, and no chat template."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from manytune.data.encoding.encoded import Encoded, EncodedSet
from manytune.data.encoding.special_tokens import SpecialTokens
from manytune.data.labels.label_kinds import AnyLabels
from manytune.data.labels.labelled import Labels
from manytune.data.records import Rejected
from manytune.data.templates import Example
from manytune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TextOverflow = Literal["error", "drop", "truncate_prompt"]
"""What becomes of texts that are too long: an error, left out, or cut at the end (of two, the longer one first)."""

_NO_LIMIT = 10**6  # tokenizers without a limit have an enormous one


@dataclass(frozen=True)
class Labelled(Encoded):
    """Token ids of a text as `prompt_ids`, and its label's place as the single one of `completion_ids`.

    Args:
        token_type_ids: Which of two texts each token is from; empty for a single text.
        weight: What it weighs in the loss.
        value: For a regression: what the head is to give; the label's place is 0 then.
    """

    token_type_ids: tuple[int, ...] = ()
    weight: float = 1.0
    value: float | None = None

    @property
    def label(self) -> int:
        """The place of its label."""
        return self.completion_ids[0]

    @property
    def input_ids(self) -> tuple[int, ...]:
        """What the model reads: the text alone."""
        return self.prompt_ids

    @property
    def content(self) -> str:
        """See `Encoded`."""
        return super().content + ("" if self.value is None else f" {self.value!r}")


class RowEncoder(ABC):
    """Encodes a classifier's examples.

    Args:
        labels: The classes.
        weights: What rows of each label weigh in the loss; 1 if not given.
        drops: Whether examples that can't be encoded are left out, rather than an error.
    """

    def __init__(
        self, labels: AnyLabels, *, weights: Mapping[str, float] | None = None, drops: bool = False
    ) -> None:
        self.labels = labels
        self._weights = weights or {}
        self._drops = drops

    @abstractmethod
    def shown(self, example: Example) -> str:
        """What to show of an example's input."""

    @abstractmethod
    def encode(self, example: Example) -> tuple[Labelled, bool]:
        """What the model reads of an example, with its label; and whether it was cut.

        Raises:
            DataError: It can't be read by the model, or its label is unknown.
        """

    def spelled_special_token(self, example: Example) -> str | None:
        """A special token that an example's text spells; None if it spells none."""
        return None

    def weight(self, example: Example) -> float:
        """What an example weighs in the loss."""
        return self._weights.get(example.completion, 1.0)

    def check(self, example: Example) -> None:
        """See that an example's label is known.

        Raises:
            DataError: It isn't, or is no number.
        """
        self._learned(example)

    def _learned(self, example: Example) -> tuple[int, float | None]:
        """The place of an example's label, and what a regression's head is to give.

        Raises:
            DataError: The label is unknown, or no number.
        """
        labels = self.labels
        return (labels.index(example), None) if isinstance(labels, Labels) else (0, labels.target(example))

    def encode_all(
        self, examples: Sequence[Example], *, on_error: Literal["error", "skip"] = "error"
    ) -> EncodedSet:
        """Many examples encoded; which were left out, and how many were cut.

        Args:
            examples: What to encode.
            on_error: Whether examples that can't be encoded are an error; those that may be left out never are.

        Raises:
            DataError: An example can't be encoded and isn't to be left out, or its label is unknown.
        """
        kept: list[Encoded] = []
        dropped: list[Rejected] = []
        truncated = 0
        for example in examples:
            self.check(example)  # an unknown label is an error, whatever is left out
            try:
                row, cut = self.encode(example)
            except DataError as error:
                if not self._drops and on_error == "error":
                    raise
                reason = str(error).removeprefix(f"{example.where}: ")
                dropped.append(Rejected(example.source, example.row, reason))
                continue
            kept.append(row)
            truncated += cut
        return EncodedSet(tuple(kept), tuple(dropped), truncated)


class LabelEncoder(RowEncoder):
    """Encodes a classifier's texts.

    Args:
        tokenizer: The base's.
        labels: The classes, or how numbers are read.
        max_length: The most tokens of a text; None for no limit but the tokenizer's.
        overflow: What becomes of longer ones.
        weights: What rows of each label weigh in the loss; 1 if not given.
        special_tokens_in_text: Whether special tokens that texts spell are tokens; if not, only those that the
            templates write and the tokenizer adds are.

    Raises:
        DataError: `overflow` is for conversations.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        labels: AnyLabels,
        *,
        max_length: int | None = None,
        overflow: str = "error",
        weights: Mapping[str, float] | None = None,
        special_tokens_in_text: bool = False,
    ) -> None:
        if overflow not in ("error", "drop", "truncate_prompt"):
            raise DataError(
                f"data.overflow: a classifier's texts have error, drop or truncate_prompt; found {overflow!r}, which "
                "is for conversations"
            )
        limits = [max_length, tokenizer.model_max_length if tokenizer.model_max_length < _NO_LIMIT else None]
        super().__init__(labels, weights=weights, drops=overflow == "drop")
        #: The most tokens of a text; None for no limit.
        self.longest: int | None = min((limit for limit in limits if limit is not None), default=None)
        self._tokenizer = tokenizer
        self._tokens = SpecialTokens(tokenizer, in_text=special_tokens_in_text)
        self._overflow = overflow

    def texts(self, example: Example) -> list[str]:
        """An example's text, or its two, ready for `tokens`."""
        return [self._tokens.as_text(one.text, written=one.written) for one in example.segments]

    def shown(self, example: Example) -> str:
        """An example's text, or its two."""
        return "\n\n".join(segment.text for segment in example.segments)

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def spelled_special_token(self, example: Example) -> str | None:
        """A special token that an example's text spells; None if it spells none."""
        return self._tokens.spelled_by(example.segments)

    def asked(self, texts: Sequence[str]) -> list[str]:
        """A text to classify, or two, ready for `tokens`."""
        return [self._tokens.as_text(text) for text in texts]

    def tokens(self, texts: Sequence[str], *, cut: bool = False) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The token ids of a text or of two, and from which of the two each token is; empty for one text.

        Args:
            texts: One or two, of `texts` or `asked`.
            cut: Whether they are cut to the limit.
        """
        found = self._tokens.encoded(*texts, add_special_tokens=True, longest=self.longest if cut else None)
        kinds = found.get("token_type_ids", ())
        return found["input_ids"], kinds if any(kinds) else ()

    def encode(self, example: Example) -> tuple[Labelled, bool]:
        """Token ids of an example, and whether it was cut.

        Raises:
            DataError: It is too long and isn't to be cut, or its label is unknown or no number.
        """
        texts = self.texts(example)
        ids, kinds = self.tokens(texts)
        too_long = self._is_too_long(ids, example)
        if too_long:
            ids, kinds = self.tokens(texts, cut=True)
        label, value = self._learned(example)
        row = Labelled(
            ids,
            (label,),
            example.source,
            example.row,
            example.group,
            token_type_ids=kinds,
            weight=self.weight(example),
            value=value,
        )
        return row, too_long

    def _is_too_long(self, ids: Sequence[int], example: Example) -> bool:
        """Whether an example is to be cut.

        Raises:
            DataError: It is too long and isn't to be cut.
        """
        too_long = self.longest is not None and len(ids) > self.longest
        if too_long and self._overflow != "truncate_prompt":
            raise DataError(
                f"{len(ids):,} tokens; data.max_length and the base allow {self.longest:,}. Set data.overflow to "
                "truncate_prompt to cut longer texts, or to drop to leave them out",
                where=example.where,
            )
        return too_long
