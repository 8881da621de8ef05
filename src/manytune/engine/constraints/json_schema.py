"""Which JSON schemas answers can be held to: what isn't supported is refused by name, not ignored.

The keywords are those of JSON Schema, draft 2020-12, and of older drafts where they mean the same. llguidance has
them and refuses what it can't express, such as a `oneOf` whose alternatives may overlap; this file refuses what it
wouldn't look at, and schemas of any size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from manytune.engine.constraints.patterns import check_pattern
from manytune.errors import GrammarError

_MOST_SCHEMAS = 5_000
_DEEPEST = 40
_MOST_PROPERTIES = 500  # of one object; optional ones take time that is quadratic in their number
_MOST_VALUES = 20_000  # of all enumerations
_LARGEST = 2**31 - 1  # a count

_OF_SCHEMAS_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_OF_SCHEMAS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_OF_ONE_SCHEMA = frozenset({"items", "additionalItems", "additionalProperties"})
_COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
_NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_TEXTS = frozenset({"$ref", "pattern", "format"})
_VALUES = frozenset({"type", "const", "enum", "required"}) | _NUMBERS | _TEXTS
#: What says something about the values, but not which they are. `discriminator` is OpenAPI's, and repeats what the
#: alternatives of the `oneOf` next to it say.
_ANNOTATIONS = frozenset(
    {
        "discriminator",
        "$schema",
        "$id",
        "id",
        "$anchor",
        "$comment",
        "title",
        "description",
        "default",
        "examples",
        "example",
    }
    | {"deprecated", "readOnly", "writeOnly", "contentMediaType", "contentEncoding"}
)
#: No leap seconds, which only some minutes had (RFC 3339, 5.7), and the longest parts of names (RFC 5321, 4.5.3.1).
_LIMITS_OF_FORMATS = {
    "time": "^[^:]*:[^:]*:[0-5]",
    "date-time": "^[^:]*:[^:]*:[0-5]",
    "email": "^[^@]{1,64}@[^@]{1,253}$",
    "hostname": "^.{1,253}$",
}
_KEYWORDS = _OF_SCHEMAS_BY_NAME | _OF_SCHEMAS | _OF_ONE_SCHEMA | _COUNTS | _VALUES | _ANNOTATIONS


def check_schema(schema: Any, where: str) -> None:
    """Refuse a schema that is too large, or that has what answers can't be held to.

    Args:
        schema: What was sent.
        where: What to call it in messages.

    Raises:
        GrammarError: It has such.
    """
    waiting = [(schema, where, 0)]
    schemas = values = 0
    while waiting:
        one, place, depth = waiting.pop()
        schemas += 1
        if schemas > _MOST_SCHEMAS or depth > _DEEPEST:
            raise GrammarError(
                f"expected {_MOST_SCHEMAS:,} schemas within one another at most, {_DEEPEST} deep, found more.",
                where=where,
            )
        if isinstance(one, bool) and depth:
            continue
        if not isinstance(one, dict):
            raise GrammarError(
                f"expected a JSON schema, which is an object, found {_kind(one)}.", where=place
            )
        _check_keywords(one, place)
        values += len(one["enum"]) if isinstance(one.get("enum"), list) else 0
        if values > _MOST_VALUES:
            raise GrammarError(f"expected {_MOST_VALUES:,} values of enum at most, found more.", where=where)
        waiting.extend((inner, below, depth + 1) for inner, below in _inner(one, place))


def with_limits_of_formats(schema: Any) -> Any:
    """Return a copy of a checked schema with what llguidance leaves out of some formats."""
    copied = deepcopy(schema)
    waiting = [copied]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting.extend(inner for inner, _ in _inner(one, ""))
            limits = _LIMITS_OF_FORMATS.get(one.get("format", ""))
            if limits is not None:
                one["allOf"] = [*one.get("allOf", ()), {"pattern": limits}]
    return copied


def _check_keywords(schema: Mapping[str, Any], place: str) -> None:
    for key, value in schema.items():
        if key not in _KEYWORDS:
            raise GrammarError(f"the keyword {key[:60]!r} isn't supported; leave it out.", where=place)
        expected = _expected(key, value)
        if expected is not None:
            raise GrammarError(f"expected {expected}, found {_kind(value)}.", where=f"{place}.{key}")
        if key in _COUNTS and not _is_count(value):
            raise GrammarError(
                f"{place}.{key}: expected an integer from 0 to {_LARGEST:,}, found {_kind(value)}."
            )
        if key == "pattern" and isinstance(value, str):
            check_pattern(value, f"{place}.pattern")
        if key == "$ref" and not (isinstance(value, str) and value.startswith("#")):
            raise GrammarError(
                f"expected a place in the same schema such as '#/$defs/NAME', found {_kind(value)}.",
                where=f"{place}.$ref",
            )
    properties = schema.get("properties")
    if isinstance(properties, dict) and len(properties) > _MOST_PROPERTIES:
        raise GrammarError(
            f"expected {_MOST_PROPERTIES} at most, found {len(properties):,}.", where=f"{place}.properties"
        )


def _inner(schema: Mapping[str, Any], place: str) -> Iterator[tuple[Any, str]]:
    for key, value in schema.items():
        below = f"{place}.{key}"
        if key in _OF_SCHEMAS_BY_NAME:
            if not isinstance(value, dict):
                raise GrammarError(
                    f"expected an object of schemas by name, found {_kind(value)}.", where=below
                )
            yield from ((one, f"{below}.{name[:60]}") for name, one in value.items())
        elif key in _OF_SCHEMAS or (key == "items" and isinstance(value, list)):
            if not isinstance(value, list):
                raise GrammarError(f"expected a list of schemas, found {_kind(value)}.", where=below)
            yield from ((one, f"{below}.{index}") for index, one in enumerate(value))
        elif key in _OF_ONE_SCHEMA:
            yield value, below


def _expected(key: str, value: Any) -> str | None:
    """What a keyword's value should have been, if it isn't."""
    if key in _TEXTS and not isinstance(value, str):
        return "a string"
    if key in _NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float)):
        return "a number"
    if key == "multipleOf" and value <= 0:
        return "more than 0"
    if key == "enum" and not isinstance(value, list):
        return "a list of values"
    if key == "required" and not _is_strings(value):
        return "a list of names"
    if key == "type" and not (isinstance(value, str) or _is_strings(value)):
        return "the name of a type or a list of such"
    return None


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return repr(value[:60])
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), str(value)[:40])
