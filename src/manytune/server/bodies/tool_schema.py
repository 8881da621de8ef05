"""What an answer may be, as clients say it: tools, how to choose among them, and the format of the text."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from manytune.engine.constraints.grammar import Grammar, schema_grammar
from manytune.server.bodies.body import Body, is_deep
from manytune.server.bodies.body_errors import EXPECTED, alternatives, described, tag
from manytune.server.tools.calls import Tool

_Name = Annotated[str, Field(min_length=1, max_length=64, pattern="^[a-zA-Z0-9_.-]+$")]
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
_WORD, _OBJECT = tag("word"), tag("object")


class Function(Body):
    """A function that the model may call."""

    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema of its arguments.")
    strict: bool = Field(False, description="Whether arguments are always valid against the schema.")

    @field_validator("parameters")
    @classmethod
    def _is_flat(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        if is_deep(parameters):
            raise PydanticCustomError(EXPECTED, "a schema of 100 levels at most", {"found": "a deeper one"})
        return parameters


class ToolBody(Body):
    """A tool."""

    type: Literal["function"]
    function: Function

    _sent: dict[str, Any] = PrivateAttr()

    @model_validator(mode="wrap")
    @classmethod
    def _keep_as_sent(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        found = validate(values)
        found._sent = values
        return found

    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("type", "function") != "function":
            found = f"one of type {described(values['type'])}"
            raise PydanticCustomError(
                EXPECTED, "a tool of type 'function', as there are no others", {"found": found}
            )
        return values

    def tool(self, place: int) -> Tool:
        """The function; `place` is its place among the tools."""
        function = self.function
        parameters = _NO_PARAMETERS if function.parameters is None else function.parameters
        return Tool(function.name, parameters, function.strict, f"tools.{place}.function.parameters")

    def described(self) -> dict[str, Any]:
        """The tool for the chat template, as it was sent: templates write the keys of an object in their order."""
        return self._sent


class ChosenName(Body):
    """The name of a function."""

    name: _Name


class ChosenFunction(Body):
    """The function that must be called."""

    type: Literal["function"]
    function: ChosenName


def _word_or_object(value: object) -> str | None:
    return _WORD if isinstance(value, str) else _OBJECT if isinstance(value, dict) else None


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(_WORD)] | Annotated[ChosenFunction, Tag(_OBJECT)],
    alternatives("'none', 'auto', 'required' or an object that names a function", _word_or_object),
]


class NamedSchema(Body):
    """A JSON schema for the answer."""

    name: _Name
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=lambda: {"type": "object"}, alias="schema")
    strict: bool = Field(False, description="The answer is valid in either case.")


class ResponseFormat(Body):
    """What the text of an answer is."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _schema_if_it_needs_one(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            expected = "with it" if self.type == "json_schema" else "with type 'json_schema' only"
            raise PydanticCustomError(EXPECTED, f"json_schema {expected}", {"found": f"type {self.type!r}"})
        return self

    def grammar(self) -> Grammar | None:
        """The grammar of the text; None for any text.

        Raises:
            GrammarError: The schema has what isn't supported.
        """
        if self.type == "text":
            return None
        if self.json_schema is None:
            return schema_grammar({"type": "object"})
        return schema_grammar(self.json_schema.schema_, "response_format.json_schema.schema")
