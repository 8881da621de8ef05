"""What a client wants an answer to look like, and the grammar of that around what the chat template writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from manytune.data.encoding.answer_format import AnswerFormat
from manytune.engine.constraints.grammar import Grammar
from manytune.engine.constraints.reasoning import before_answer
from manytune.server.tools.calls import CallRules, Tool, ToolFormat


@dataclass(frozen=True)
class AnswerForm:
    """What an answer may be.

    Attributes:
        text: What its text must be; None for any text.
        tools: The functions that it may call.
        choice: Whether it must call one, may, or must not.
        callable: Those that it may call, if it must call a certain one; None for all.
        several: Whether it may call more than once.
    """

    text: Grammar | None = None
    tools: tuple[Tool, ...] = ()
    choice: Literal["auto", "required", "none"] = "auto"
    callable: str | None = None
    several: bool = True

    @property
    def may_call(self) -> bool:
        """Whether an answer may call a function."""
        return bool(self.tools) and self.choice != "none"

    @property
    def is_free(self) -> bool:
        """Whether an answer may be anything. Calls are read then, and not enforced."""
        calls_freely = self.choice == "auto" and self.several and not any(tool.strict for tool in self.tools)
        return self.text is None and (calls_freely or not self.tools)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the functions."""
        return tuple(tool.name for tool in self.tools)

    def grammar(
        self, answers: AnswerFormat, written: ToolFormat | None, special: Mapping[str, int]
    ) -> Grammar | None:
        """The grammar of generated text; None if it may be anything.

        Args:
            answers: What the chat template and the model put around an answer.
            written: How the model writes calls, if there are tools.
            special: Numbers of the tokenizer's special tokens.

        Raises:
            GrammarError: A tool's schema isn't supported, or the calls can't be put into a grammar.
        """
        if self.is_free:
            return None
        calls = self._calls(written, special) if written is not None and self.tools else None
        before, rules = before_answer(answers.opening, answers.reasoning, special)
        start = f"{before} ({self._content(calls)})".strip()
        further = [*rules, *([calls.rules] if calls else []), *([self.text.rules] if self.text else [])]
        return Grammar(start, "\n".join(filter(None, further)), self.text.parts if self.text else {})

    def _calls(self, written: ToolFormat, special: Mapping[str, int]) -> CallRules:
        tools = [tool for tool in self.tools if self.callable in (None, tool.name)]
        return written.rules(tools, special, several=self.several, strict=self.choice == "required")

    def _content(self, calls: CallRules | None) -> str:
        if calls is None or (self.choice == "none" and self.text is not None):
            assert self.text is not None
            return self.text.start
        if self.choice == "required":
            return calls.calls
        if self.choice == "none":
            return calls.text
        return calls.answer if self.text is None else f"{calls.calls} | {self.text.start}"
