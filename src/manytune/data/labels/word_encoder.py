"""From words with tags to token ids: a word's tag is that of its first token, and other tokens bear no loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manytune.data.labels.label_encoder import LabelEncoder, Labelled
from manytune.data.labels.label_kinds import AnyLabels
from manytune.data.labels.word_labels import TaggedExample, WordLabels
from manytune.data.templates import Example
from manytune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tagged(Labelled):
    """Token ids of words as `prompt_ids`, and the places of their tags as `completion_ids`.

    Args:
        first_tokens: Where the first token of each word with a tag is.
        weights: What each of these words weighs in the loss.
        words: Which of the example's words they are: those that weren't cut off, and have a token at all.
        length: How many words the example has.
    """

    first_tokens: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    words: tuple[int, ...] = ()
    length: int = 0


class WordEncoder(LabelEncoder):
    """Encodes the examples of a classifier of words; the options are those of `LabelEncoder`.

    The words are put together with spaces and tokenized as a text, so that they have the tokens that texts have.
    """

    def words(self, words: Sequence[str], *, cut: bool = False) -> tuple[tuple[int, ...], dict[int, int]]:
        """The token ids of words, and where the first token of each is, by the word's place.

        Args:
            words: The words.
            cut: Whether they are cut to the limit.

        Raises:
            DataError: The tokenizer doesn't say where its tokens come from.
        """
        if not self._tokenizer.is_fast:
            raise DataError(
                f"{type(self._tokenizer).__name__} doesn't say which word a token is from, so words can't be tagged "
                "with it; task: token-classification needs a fast tokenizer (tokenizer.json)"
            )
        marked = self.asked(words)
        found = self._tokens.encoded(
            " ".join(marked), add_special_tokens=True, longest=self.longest if cut else None, places=True
        )
        first: dict[int, int] = {}
        places, end = [], 0
        for text in marked:
            places.append((end, end + len(text)))
            end += len(text) + 1
        word = 0
        for place, (begin, stop) in enumerate(found["offset_mapping"]):
            while word < len(places) and places[word][1] <= begin:
                word += 1
            # A token may begin with the space before its word; one that ends there has nothing of the word.
            if begin < stop and word < len(places) and stop > places[word][0]:
                first.setdefault(word, place)
        return tuple(found["input_ids"]), first

    def check(self, example: Example) -> None:
        """See `LabelEncoder`."""
        self._places(example)

    def _places(self, example: Example) -> tuple[int, ...]:
        assert isinstance(self.labels, WordLabels)
        return self.labels.places(example)

    def encode(self, example: Example) -> tuple[Labelled, bool]:
        """Token ids of an example, and whether it was cut; words that are cut off bear no loss.

        Raises:
            DataError: It is too long and isn't to be cut, a tag is unknown, or no word is left.
        """
        tags = self._places(example)
        assert isinstance(example, TaggedExample)
        ids, first = self.words(example.words)
        too_long = self._is_too_long(ids, example)
        if too_long:
            ids, first = self.words(example.words, cut=True)
        if not first:
            raise DataError("no word has a token", where=example.where)
        kept = tuple(sorted(first))
        return Tagged(
            ids,
            tuple(tags[word] for word in kept),
            example.source,
            example.row,
            example.group,
            first_tokens=tuple(first[word] for word in kept),
            weights=tuple(self._weights.get(example.tags[word], 1.0) for word in kept),
            words=kept,
            length=len(example.words),
        ), too_long


def encoder_for(
    tokenizer: PreTrainedTokenizerBase,
    labels: AnyLabels,
    *,
    max_length: int | None = None,
    overflow: str = "error",
    weights: Mapping[str, float] | None = None,
    special_tokens_in_text: bool = False,
) -> LabelEncoder:
    """The encoder of rows with labels of such a kind; see `LabelEncoder`.

    Raises:
        DataError: `overflow` is for conversations.
    """
    kind = WordEncoder if isinstance(labels, WordLabels) else LabelEncoder
    return kind(
        tokenizer,
        labels,
        max_length=max_length,
        overflow=overflow,
        weights=weights,
        special_tokens_in_text=special_tokens_in_text,
    )
