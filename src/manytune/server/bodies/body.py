"""What all bodies of requests have in common: fields are known, or refused by name."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from manytune.server.http_errors import HttpError

_DEEPEST = 100

#: OpenAI's fields that a body doesn't implement, each with the values that have no effect.
Refused = dict[str, tuple[Any, ...]]


class Body(BaseModel):
    """A request body, or a part of one, without unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)

    refused: ClassVar[Refused] = {}
    #: What the official client adds to an answer when it has parsed it, and sends back: another field says it.
    repeated: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _refuse_by_name(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, neutral in cls.refused.items():
            if name in values and values[name] is not None and values[name] not in neutral:
                raise HttpError(
                    400,
                    f"{name} isn't implemented by this server; leave it out.",
                    code="unsupported_parameter",
                    param=name,
                )
        # Clients send null for what they leave out.
        given = {
            name: value
            for name, value in values.items()
            if value is not None and name not in cls.refused and name not in cls.repeated
        }
        # Each would be an error of its own, and a body has room for a hundred thousand: the first is answered.
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = [name for name in given if name not in known]
        for name in unknown[1:]:
            del given[name]
        return given


def is_deep(value: Any) -> bool:
    """Whether objects and lists are in one another deeper than chat templates can write them."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(level)


def invalid(message: str, param: str) -> HttpError:
    """A value that doesn't fit, alone or together with another."""
    return HttpError(400, message, code="invalid_value", param=param)
