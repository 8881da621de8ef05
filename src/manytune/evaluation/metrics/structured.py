"""Answers that are to be JSON: whether they are, whether they are valid by a schema, and which fields are right."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from manytune.errors import DataError, reason_of
from manytune.evaluation.metrics.base import Described, Floats, MeanOfItems, Metric, number_of_references
from manytune.evaluation.metrics.json_values import NotJsonError, fields_of, read_json
from manytune.evaluation.results import Answer


@dataclass(frozen=True, slots=True)
class JsonValid(MeanOfItems):
    """Share of items whose whole answer is JSON, with nothing before or after it."""

    name: str = "json_valid"
    label: str = "JSON"

    def scores(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Sequence[float]:
        """1 or 0 an item."""
        return [float(_is_json(answer.text)) for answer in answers]

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """Always `json:rfc8259|text:whole`."""
        return "json:rfc8259|text:whole"


@dataclass(frozen=True, slots=True)
class SchemaValid(MeanOfItems):
    """Share of items whose answer is JSON that a schema finds valid; made by `schema_metric`."""

    name: str = "json_schema"
    label: str = "Valid by the schema"
    schema: Mapping[str, Any] | None = field(default=None, kw_only=True)
    title: str = field(default="schema", kw_only=True)

    def scores(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Sequence[float]:
        """1 or 0 an item.

        Raises:
            DataError: There is no schema.
        """
        from jsonschema.validators import validator_for

        if self.schema is None:
            raise DataError("json_schema needs a schema: manytune evaluate --schema FILE")
        validator = validator_for(self.schema)(self.schema)
        return [
            float(_is_json(answer.text) and validator.is_valid(read_json(answer.text))) for answer in answers
        ]

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """For example `json:rfc8259|text:whole|schema:person.json`."""
        return f"json:rfc8259|text:whole|schema:{self.title}"


@dataclass(frozen=True, slots=True)
class JsonFields(Described):
    """F1 of fields that are exactly right: `2·TP / (2·TP + FP + FN)`, summed over all items.

    A field is a value without further ones in it, with its path. One with the reference's value is a TP; another value,
    or a field that the reference lacks, is an FP; a field of the reference that isn't right is an FN. An answer that
    isn't JSON has no fields. Of several references the nearest counts.
    """

    name: str = "json_fields"
    label: str = "Fields F1"

    def statistics(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Floats:
        """Rows `(TP, FP, FN)`.

        Raises:
            DataError: A reference isn't JSON.
        """
        return np.array(
            [
                min((_compared(answer.text, text) for text in texts), key=lambda row: _errors(*row))
                for answer, texts in zip(answers, references, strict=True)
            ],
            dtype=np.float64,
        )

    def aggregate(self, sums: Floats) -> Floats:
        """F1 of the summed counts; 1 where there are no fields at all."""
        right, wrong, missed = sums[..., 0], sums[..., 1], sums[..., 2]
        occurring = 2 * right + wrong + missed
        result: Floats = np.divide(2 * right, occurring, out=np.ones_like(occurring), where=occurring > 0)
        return result

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """For example `nrefs:1|fields:exact|mean:micro|mrefs:nearest`."""
        return f"nrefs:{number_of_references(references)}|fields:exact|mean:micro|mrefs:nearest"


def schema_metric(file: Path) -> SchemaValid:
    """Return the metric of a file with a JSON schema.

    Raises:
        DataError: The file can't be read, or isn't a schema.
    """
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"the schema can't be read: {reason_of(error)}", where=str(file)) from error
    if not isinstance(schema, dict):
        raise DataError(f"a JSON schema is an object, not {type(schema).__name__}", where=str(file))
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        raise DataError(f"this isn't a JSON schema: {error.message}", where=str(file)) from error
    return SchemaValid(schema=schema, title=file.name)


def with_schema(metrics: Sequence[Metric], valid: SchemaValid | None) -> tuple[Metric, ...]:
    """Metrics with one for a schema, in the place that its name has among them, or at the end."""
    if valid is None:
        return tuple(metrics)
    found = [valid if metric.name == valid.name else metric for metric in metrics]
    return tuple(found if valid in found else [*found, valid])


def _is_json(text: str) -> bool:
    try:
        read_json(text)
    except NotJsonError:
        return False
    return True


def _compared(said: str, wanted: str) -> tuple[int, int, int]:
    try:
        right = set(fields_of(read_json(wanted)))
    except NotJsonError as error:
        raise DataError(
            f"json_fields compares fields of JSON, and a reference isn't JSON ({error}): {wanted[:60]!r}"
        ) from error
    try:
        found = set(fields_of(read_json(said)))
    except NotJsonError:
        found = set()
    return len(right & found), len(found - right), len(right - found)


def _errors(right: int, wrong: int, missed: int) -> tuple[int, int]:
    return wrong + missed, -right
