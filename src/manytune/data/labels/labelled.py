"""Rows for a classifier: one or two texts or an image, and a label; the labels, and what each weighs in the loss."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from manytune.data.labels.numeric_labels import not_a_number, number_in
from manytune.data.records import Record
from manytune.data.rendering import compile_part, field_as_text, no_field, rendered_part, used_fields
from manytune.data.templates import Example, Segment
from manytune.errors import DataError, TemplateError
from manytune.images import image_text

MOST_LABELS = 200
"""With more labels than this, a column isn't taken for classes."""


@dataclass(frozen=True)
class LabelledForm:
    """How a row becomes an example for a classifier: the text or image is its prompt, the label its completion.

    Args:
        text: Jinja2 template of the text; None for an image.
        label: The field with the label.
        text_pair: Jinja2 template of a second text, such as a hypothesis next to a premise; None for one text.
        group_by: The field whose value keeps rows together in splits, or None.
        image: The field with the image, instead of a text.
        is_numeric: Whether the label is a number.

    Raises:
        TemplateError: A template isn't valid Jinja2.
    """

    text: str | None
    label: str
    text_pair: str | None = None
    group_by: str | None = None
    image: str | None = None
    is_numeric: bool = False

    def __post_init__(self) -> None:
        for part, template in self._templates().items():
            compile_part(part, template)

    def render(self, record: Record) -> Example:
        """Return the example that a record makes; see `RowForm`.

        Raises:
            TemplateError: A field is missing or can't be printed, a text or the label is empty, the image is none, or a
                label that is to be a number isn't.
        """
        try:
            label = field_as_text("label", self.label, record.fields).strip()
            if not label:
                raise TemplateError(f"the label, the field {self.label!r}, is empty")
            if self.is_numeric and number_in(label) is None:
                raise TemplateError(not_a_number(label))
            group = self.group_by and field_as_text("group_by", self.group_by, record.fields)
            return Example(
                segments=self._segments(record),
                completion=label,
                source=record.source,
                row=record.row,
                group=group,
            )
        except TemplateError as error:
            raise type(error)(str(error), where=record.where) from error

    def fields_used(self) -> frozenset[str] | None:
        """See `RowForm`."""
        found = {self.label, *filter(None, [self.group_by, self.image])}
        for template in self._templates().values():
            fields = used_fields(template)
            if fields is None:
                return None
            found |= fields
        return frozenset(found)

    def grouped_by(self, field: str) -> LabelledForm:
        """See `RowForm`."""
        return replace(self, group_by=field)

    def _segments(self, record: Record) -> tuple[Segment, ...]:
        if self.image is None:
            texts = [
                rendered_part(part, template, record.fields) for part, template in self._templates().items()
            ]
            return tuple(Segment("user", text.text, written=text.written) for text in texts)
        value = record.fields.get(self.image)
        if value is None:
            raise TemplateError(f"image {no_field(self.image, record.fields)}")
        source = Path(record.source)
        try:
            return (Segment("user", image_text(value, source.parent if source.is_file() else Path())),)
        except DataError as error:
            raise TemplateError(f"the field {self.image!r}: {error}") from error

    def _templates(self) -> dict[str, str]:
        given = {"text": self.text, "text_pair": self.text_pair}
        return {part: template for part, template in given.items() if template is not None}


def labelled_form(
    text: str | None,
    label: str | None,
    text_pair: str | None,
    group_by: str | None,
    image: str | None = None,
    *,
    is_numeric: bool = False,
) -> LabelledForm:
    """The form that the keys of a recipe describe.

    Raises:
        TemplateError: Text or image and label are not both there, there are text and image, or a template isn't valid
            Jinja2.
    """
    if image is not None and (text is not None or text_pair is not None):
        raise TemplateError("give either text or image; a classifier reads one of them")
    if (text is None and image is None) or label is None:
        raise TemplateError(
            "text, a template, or image, a field's name, and label, a field's name, go together"
        )
    return LabelledForm(text, label, text_pair, group_by, image, is_numeric)


@dataclass(frozen=True)
class Labels:
    """The classes of a classifier.

    Attributes:
        names: In the order of the head's outputs: whole numbers by size, other names by the alphabet.
        counts: How many training rows have each; empty if that isn't known.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...] = ()

    @property
    def majority(self) -> tuple[str, float]:
        """The most frequent label of the training rows, and its share of them; the first of several.

        Raises:
            DataError: How many rows have which isn't known.
        """
        if not self.counts:
            raise DataError("how many training rows have which label isn't known")
        most = max(self.counts)
        return self.names[self.counts.index(most)], most / sum(self.counts)

    def index(self, example: Example) -> int:
        """The place of an example's label.

        Raises:
            DataError: No training row has it.
        """
        if example.completion not in self.names:
            raise DataError(
                f"the label {example.completion!r} is no training row's: {', '.join(self.names)}. Correct it, or move "
                "rows that have it into the training rows",
                where=example.where,
            )
        return self.names.index(example.completion)

    def weights(self, wanted: Literal["balanced"] | Mapping[str, float] | None) -> dict[str, float]:
        """What a row of each label weighs in the loss; the mean over the training rows is 1.

        Args:
            wanted: `balanced` for weights in inverse proportion to the labels' frequencies, so that every label has
                the same share of the loss; or the weight of each label; None for equal weights.

        Raises:
            DataError: A label has no weight, or a weight no label.
        """
        if wanted is None:
            return dict.fromkeys(self.names, 1.0)
        if wanted == "balanced":
            raw = [1 / count for count in self.counts]
        else:
            missing, unknown = set(self.names) - set(wanted), set(wanted) - set(self.names)
            if missing or unknown:
                what = f"none for {sorted(missing)}" if missing else f"one for the unknown {sorted(unknown)}"
                raise DataError(
                    f"training.class_weights: expected a weight for each of {list(self.names)}; there is {what}"
                )
            raw = [float(wanted[name]) for name in self.names]
        mean = sum(weight * count for weight, count in zip(raw, self.counts, strict=True)) / sum(self.counts)
        return {name: weight / mean for name, weight in zip(self.names, raw, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        """As a manifest holds it."""
        return {"names": list(self.names), "counts": list(self.counts)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            DataError: It isn't that.
        """
        names, counts = content.get("names"), content.get("counts", [])
        if isinstance(names, list) and isinstance(counts, list):
            different = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
            counted = all(type(count) is int and count > 0 for count in counts)
            if different and counted and 2 <= len(names) <= MOST_LABELS and len(counts) in (0, len(names)):
                return cls(tuple(names), tuple(counts))
        raise DataError(
            f"expected 2 to {MOST_LABELS} different labels and as many counts; found {str(content)[:200]}"
        )


def labels_of(examples: Sequence[Example], *, field: str = "data.label") -> Labels:
    """The labels of training rows.

    Args:
        examples: At least one.
        field: The key that says where they are, for messages.

    Raises:
        DataError: There is a single label, there are too many, or two differ only in case or white space.
    """
    counts = Counter(example.completion for example in examples)
    where = examples[0].source
    if len(counts) == 1:
        raise DataError(
            f"every training row has the label {next(iter(counts))!r}; a classifier needs two labels or more. Is "
            f"{field} the right field?",
            where=where,
        )
    if len(counts) > MOST_LABELS:
        raise DataError(
            f"{len(counts):,} different labels in {len(examples):,} training rows; expected at most {MOST_LABELS}. Is "
            f"{field} the right field?",
            where=where,
        )
    alike: dict[str, str] = {}
    for name in counts:
        other = alike.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), name)
        if other != name:
            raise DataError(
                f"the labels {other!r} and {name!r} differ only in case or white space, so they are probably one. "
                "Write them alike",
                where=where,
            )
    names = tuple(sorted(counts, key=_place))
    return Labels(names, tuple(counts[name] for name in names))


def _place(name: str) -> tuple[bool, int, str]:
    number = name.removeprefix("-")
    is_number = number.isascii() and number.isdigit()
    return not is_number, int(name) if is_number else 0, name


def check_labels(labels: Labels, *others: Sequence[Example]) -> None:
    """See that rows which aren't trained on have the training rows' labels.

    Raises:
        DataError: One has another; names its file and line.
    """
    for examples in others:
        for example in examples:
            labels.index(example)
