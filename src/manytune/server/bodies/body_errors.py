"""What is wrong with the body of a request, in one sentence: where, what was expected, and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Discriminator

from manytune.server.http_errors import HttpError

#: The type of an error whose message says what was expected; its context may say what was found.
EXPECTED = "expected"
#: Begins the name of an alternative, which is no part of a place in the body.
_TAG = "~"

_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "an integer of fewer digits",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "literal_error": "{expected}",
    "greater_than_equal": "{ge} or more",
    "greater_than": "more than {gt}",
    "less_than_equal": "{le} or less",
    "less_than": "less than {lt}",
    "too_short": "{min_length} or more entries",
    "too_long": "{max_length} entries at most",
    "string_too_short": "{min_length} or more characters",
    "string_too_long": "{max_length} characters at most",
}


def tag(name: str) -> str:
    """The tag of one alternative of a field."""
    return _TAG + name


def alternatives(expected: str, choose: Any) -> Discriminator:
    """Makes a union whose errors are those of the alternative that was meant.

    Args:
        expected: All alternatives, for a value that is none of them.
        choose: Gives the tag of the alternative that a value is meant to be, or None.
    """
    return Discriminator(choose, custom_error_type=EXPECTED, custom_error_message=expected)


def invalid_body(error: Mapping[str, Any]) -> HttpError:
    """The answer for an error of pydantic's in a body."""
    where = ".".join(str(part) for part in error["loc"][1:] if not str(part).startswith(_TAG))[:200]
    match error["type"]:
        case "extra_forbidden":
            return HttpError(400, f"there is no parameter {where}.", code="unknown_parameter", param=where)
        case "json_invalid":
            return HttpError(400, "the body isn't valid JSON.", code="invalid_json")
        case "missing":
            what = f"{where} is missing." if where else "the request has no body."
            return HttpError(
                400, what, code="missing_parameter" if where else "invalid_json", param=where or None
            )
    context = error.get("ctx", {})
    if error["type"] == EXPECTED:
        expected = error["msg"]
    elif error["type"] in _EXPECTED:
        expected = _EXPECTED[error["type"]].format_map(context)
    else:
        return HttpError(
            400, f"{where or 'the body'}: {error['msg']}.", code="invalid_value", param=where or None
        )
    found = context.get("found") or described(error["input"])
    if error["type"].endswith(("too_short", "too_long")) and error["input"]:
        found = f"{len(error['input']):,}"
    message = f"{where or 'the body'}: expected {expected}, found {found}."
    return HttpError(400, message, code="invalid_value", param=where or None)


def described(value: object, *, inside: bool = False) -> str:
    """A value of a body in a few words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        size = len(value)
        return (
            "an empty string"
            if not value
            else repr(value)
            if size <= 40
            else f"a string of {size:,} characters"
        )
    if isinstance(value, (int, float)):
        return f"{value}"[:40]
    if isinstance(value, dict):
        return "an object"
    if not isinstance(value, list):
        return f"{value!r}"[:40]
    if inside or not value:
        return "a list" if value else "an empty list"
    return f"a list of {len(value):,} that begins with {described(value[0], inside=True)}"
