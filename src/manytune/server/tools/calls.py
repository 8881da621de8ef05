"""Tools and calls of them, in whatever form a model writes them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: The function.
        parameters: A JSON schema of its arguments.
        strict: Whether its arguments must be valid against the schema, also where a call is the model's own idea.
        where: The place of the schema in the request, for messages.
    """

    name: str
    parameters: Mapping[str, Any]
    strict: bool
    where: str


@dataclass(frozen=True)
class CallDelta:
    """What is new of a call.

    Attributes:
        index: The call's place among those of the answer.
        arguments: The next characters of its arguments, which are JSON.
        name: The function, in a call's first delta; None in later ones.
        id: The call's name for the tool's answer, in its first delta.
    """

    index: int
    arguments: str = ""
    name: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class Part:
    """What is new of an answer: text, and calls after it."""

    text: str = ""
    calls: tuple[CallDelta, ...] = ()


class CallReader(Protocol):
    """Takes one answer apart while it is written. No text is given out before it is certain to be no call."""

    def push(self, text: str) -> Part:
        """Take the next text; return what of the answer is certain by then."""

    def finish(self) -> Part:
        """Return the rest, as the answer has ended. Text that began like a call and is none is text."""


@dataclass(frozen=True)
class CallRules:
    """Calls as parts of a grammar.

    Attributes:
        calls: One or more calls, or exactly one.
        answer: What the model writes if it may call: text, calls, or both.
        text: Text without a call.
        rules: The rules that these name.
    """

    calls: str
    answer: str
    text: str
    rules: str


class ToolFormat(Protocol):
    """How a family of models writes calls."""

    @property
    def name(self) -> str:
        """What to call it in messages."""

    def reader(self, tools: Collection[str]) -> CallReader:
        """A reader of one answer.

        Args:
            tools: The names of the functions; what calls another one may be text.
        """

    def rules(
        self, tools: Sequence[Tool], special: Mapping[str, int], *, several: bool, strict: bool
    ) -> CallRules:
        """The calls of some functions as parts of a grammar, written like the family's chat template writes them.

        Args:
            tools: The functions.
            special: Numbers of the tokenizer's special tokens by their texts.
            several: Whether an answer may call more than once.
            strict: Whether arguments must be valid against the schema of a tool that isn't strict, too.

        Raises:
            GrammarError: A schema isn't supported, or the family's calls can't be put into a grammar.
        """


@dataclass(frozen=True)
class Step:
    """What a text adds to a call.

    Attributes:
        state: Whether the call goes on, or has ended, or is no call.
        name: The function, once it is known.
        arguments: The next characters of the arguments.
        rest: The text after the call, or all of the text if it is none.
    """

    state: Literal["open", "done", "text"]
    name: str | None = None
    arguments: str = ""
    rest: str = ""


class Written:
    """Collects what a reader finds while it works through a text, and numbers the calls.

    Args:
        new_id: Makes a name for a call.
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._text = ""
        self._deltas: list[CallDelta] = []
        self.calls = 0

    def add_text(self, text: str) -> None:
        """Text that is no call."""
        self._text += text

    def take_step(self, step: Step) -> None:
        """What a text adds to a call."""
        if step.name is not None:
            self.begin_call(step.name, step.arguments)
        else:
            self.continue_call(step.arguments)

    def begin_call(self, name: str, arguments: str, call_id: str | None = None) -> None:
        """A call, with what is known of its arguments."""
        self._deltas.append(CallDelta(self.calls, arguments, name, call_id or self._new_id()))
        self.calls += 1

    def continue_call(self, arguments: str) -> None:
        """More arguments of the last call."""
        if arguments:
            self._deltas.append(CallDelta(self.calls - 1, arguments))

    def take(self) -> Part:
        """Return what was found, and begin again."""
        part = Part(self._text, tuple(self._deltas))
        self._text, self._deltas = "", []
        return part


def new_id() -> str:
    """A name for a call, as OpenAI writes it."""
    return f"call_{secrets.token_hex(12)}"


def short_id() -> str:
    """A name for a call of the nine letters and digits that Mistral's templates want."""
    return secrets.token_hex(5)[:9]
