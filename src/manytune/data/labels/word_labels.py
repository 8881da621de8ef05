"""Rows for a classifier of words: the words of a text, and a tag for each, such as BIO tags of named entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from manytune.data.labels.labelled import Labels, labels_of
from manytune.data.records import Record
from manytune.data.rendering import field_as_text, no_field
from manytune.data.templates import Example, Segment
from manytune.errors import DataError, TemplateError

TASK = "token-classification"


@dataclass(frozen=True)
class TaggedExample(Example):
    """An example whose prompt is its words with spaces between them, and whose completion is their tags.

    Args:
        words: The words.
        tags: A tag for each.
    """

    words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaggedForm:
    """How a row becomes an example for a classifier of words.

    Args:
        tokens: The field with the words: a list of texts, or a text that is divided at white space.
        tags: The field with their tags: a list of as many texts, or a text that is divided at white space; or a list of
            numbers, places among the names.
        tag_names: The names of numbers; empty if the tags are names themselves.
        group_by: The field whose value keeps rows together in splits, or None.
    """

    tokens: str
    tags: str
    tag_names: tuple[str, ...] = ()
    group_by: str | None = None

    def render(self, record: Record) -> TaggedExample:
        """Return the example that a record makes; see `RowForm`.

        Raises:
            TemplateError: A field is missing or is no list of words or tags, there are none, or they aren't as many.
        """
        try:
            words, tags = self._words(record.fields), self._tags(record.fields)
            if len(words) != len(tags):
                raise TemplateError(
                    f"the field {self.tokens!r} has {len(words):,} words, and {self.tags!r} has {len(tags):,} tags; "
                    "expected a tag for each word"
                )
            group = self.group_by and field_as_text("group_by", self.group_by, record.fields)
        except TemplateError as error:
            raise type(error)(str(error), where=record.where) from error
        return TaggedExample(
            segments=(Segment("user", " ".join(words)),),
            completion=" ".join(tags),
            source=record.source,
            row=record.row,
            group=group,
            words=words,
            tags=tags,
        )

    def fields_used(self) -> frozenset[str] | None:
        """See `RowForm`."""
        return frozenset({self.tokens, self.tags, *filter(None, [self.group_by])})

    def grouped_by(self, field: str) -> TaggedForm:
        """See `RowForm`."""
        return replace(self, group_by=field)

    def _words(self, fields: Mapping[str, object]) -> tuple[str, ...]:
        found = _listed("tokens", self.tokens, fields)
        words = tuple(" ".join(str(word).split()) for word in found)
        for place, word in enumerate(words, start=1):
            if not word or not isinstance(found[place - 1], str):
                raise TemplateError(
                    f"word {place} of the field {self.tokens!r} is {str(found[place - 1])[:40]!r}; expected a "
                    "text that isn't blank"
                )
        return words

    def _tags(self, fields: Mapping[str, object]) -> tuple[str, ...]:
        tags = []
        for place, tag in enumerate(_listed("tags", self.tags, fields), start=1):
            if self.tag_names and type(tag) is int and 0 <= tag < len(self.tag_names):
                tags.append(self.tag_names[tag])
            elif not self.tag_names and type(tag) in (str, int) and len(str(tag).split()) == 1:
                tags.append(str(tag).strip())
            else:
                expected = (
                    f"a number below {len(self.tag_names)}, the place of a name in data.tag_names"
                    if self.tag_names
                    else "a name without white space"
                )
                raise TemplateError(f"tag {place} of the field {self.tags!r} is {tag!r}; expected {expected}")
        return tuple(tags)


def _listed(purpose: str, name: str, fields: Mapping[str, object]) -> Sequence[object]:
    value = fields.get(name)
    if value is None:
        raise TemplateError(f"{purpose} {no_field(name, fields)}")
    found = value.split() if isinstance(value, str) else value
    if hasattr(found, "tolist"):
        found = found.tolist()  # as datasets of arrays give them
    if not isinstance(found, list | tuple):
        raise TemplateError(
            f"{purpose}: the field {name!r} is {type(value).__name__}; expected a list, or a text with spaces"
        )
    if not found:
        raise TemplateError(f"{purpose}: the field {name!r} is empty")
    return found


@dataclass(frozen=True)
class WordLabels(Labels):
    """The tags of a classifier of words; the counts are of the training rows' words."""

    def places(self, example: Example) -> tuple[int, ...]:
        """The places of an example's tags.

        Raises:
            DataError: It has no words, or a tag that no training row has.
        """
        if not isinstance(example, TaggedExample):
            raise DataError("expected words with tags", where=example.where)
        for tag in example.tags:
            if tag not in self.names:
                raise DataError(
                    f"the tag {tag!r} is no training row's: {', '.join(self.names)}. Correct it, or move rows that "
                    "have it into the training rows",
                    where=example.where,
                )
        return tuple(map(self.names.index, example.tags))

    def to_dict(self) -> dict[str, Any]:
        """As a manifest holds it."""
        return {"task": TASK, **super().to_dict()}


def word_labels_of(examples: Sequence[Example]) -> WordLabels:
    """The tags of training rows.

    Raises:
        DataError: There is a single tag, there are too many, or two differ only in case.
    """
    words = [
        replace(example, completion=tag)
        for example in examples
        if isinstance(example, TaggedExample)
        for tag in example.tags
    ]
    found = labels_of(words, field="data.tags")
    return WordLabels(found.names, found.counts)
