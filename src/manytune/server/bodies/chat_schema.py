"""The bodies of conversations: every field of OpenAI's API is implemented or refused by name; none is ignored."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from manytune.server.bodies.answer_form import AnswerForm
from manytune.server.bodies.body import Refused, invalid
from manytune.server.bodies.field_types import Items, at_most
from manytune.server.bodies.message_schema import Message
from manytune.server.bodies.schema import GenerationBody
from manytune.server.bodies.tool_schema import ChosenFunction, ResponseFormat, ToolBody, ToolChoice

_REFUSED_IN_CHAT: Refused = {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": (),
    "web_search_options": (),
}


class Conversation(GenerationBody):
    """Messages, or fields for an adapter's prompt template."""

    messages: Items[Message] = Field(default_factory=list, max_length=1000)
    fields: dict[str, Any] | None = Field(
        None, description="For the adapter's prompt template, in place of messages."
    )
    task: str | None = Field(
        None, description="The task whose template to use, for an adapter trained on several."
    )
    max_completion_tokens: int | None = Field(None, ge=1)
    chat_template_kwargs: Annotated[dict[str, Any], at_most(64)] = Field(
        default_factory=dict,
        max_length=64,
        description="Values of the chat template's variables, in place of the adapter's; such as enable_thinking.",
    )

    response_format: ResponseFormat | None = None
    continue_final_message: bool = Field(
        False, description="Continue the last message, which is the assistant's, in place of answering it."
    )

    @model_validator(mode="after")
    def _one_format(self) -> Self:
        field = super().form_field
        if field is not None and self.response_format is not None and self.response_format.type != "text":
            raise invalid(f"{field} and response_format exclude each other; give one.", "response_format")
        return self

    @model_validator(mode="after")
    def _continued_message(self) -> Self:
        if self.continue_final_message:
            last = self.messages[-1] if self.messages else None
            if last is None or last.role != "assistant" or last.tool_calls or not last.text.strip():
                raise invalid(
                    "continue_final_message needs a last message of the assistant's, with text and without tool calls.",
                    "continue_final_message",
                )
        return self

    @property
    def form_field(self) -> str | None:
        """The field that says what the text of the answer must be, if one does."""
        formatted = self.response_format is not None and self.response_format.type != "text"
        return "response_format" if formatted else super().form_field

    def form(self) -> AnswerForm:
        """What the answer may be.

        Raises:
            GrammarError: It isn't supported, or is too large.
        """
        if self.response_format is not None and self.response_format.type != "text":
            return AnswerForm(self.response_format.grammar())
        return super().form()

    @property
    def described_tools(self) -> list[dict[str, Any]]:
        """The functions that may be called, for the chat template."""
        return []

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if bool(self.messages) == (self.fields is not None):
            raise invalid("give either messages or fields.", "messages")
        if self.task is not None and self.fields is None:
            raise invalid("task selects the template for fields, and there are no fields.", "task")
        if (
            None not in (self.max_tokens, self.max_completion_tokens)
            and self.max_tokens != self.max_completion_tokens
        ):
            raise invalid("max_tokens and max_completion_tokens differ; give one.", "max_tokens")
        return self

    @property
    def token_limit(self) -> tuple[str, int | None]:
        """The field that limits the answer, and the limit."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().token_limit


class ChatRequest(Conversation):
    """`POST /v1/chat/completions`."""

    refused: ClassVar[Refused] = _REFUSED_IN_CHAT
    model: str
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Items[ToolBody] = Field(default_factory=list, max_length=128)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = Field(True, description="Whether an answer may call more than one function.")

    @model_validator(mode="after")
    def _tools_together(self) -> Self:
        names = [tool.function.name for tool in self.tools]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise invalid(f"tools has two functions called {twice!r}.", "tools")
        if self.tools and self.fields is not None:
            raise invalid(
                "tools go with messages; an adapter's prompt template has no place for them.", "tools"
            )
        if self.tools and self.continue_final_message:
            raise invalid("continue_final_message and tools exclude each other.", "continue_final_message")
        if self.tools and self.skip_special_tokens:
            raise invalid(
                "skip_special_tokens would leave out the marks of tool calls; leave it out, text has none of them.",
                "skip_special_tokens",
            )
        chosen = self.tool_choice
        if chosen not in (None, "none") and not self.tools:
            raise invalid("tool_choice needs tools.", "tool_choice")
        if isinstance(chosen, ChosenFunction) and chosen.function.name not in names:
            raise invalid(
                f"tool_choice names {chosen.function.name!r}, which isn't among the tools.", "tool_choice"
            )
        return self

    @property
    def form_field(self) -> str | None:
        """The field that says what the answer must be, if one does."""
        return super().form_field or ("tools" if self.tools else None)

    def form(self) -> AnswerForm:
        """What the answer may be.

        Raises:
            GrammarError: It isn't supported, or is too large.
        """
        chosen = self.tool_choice or "auto"
        named = isinstance(chosen, ChosenFunction)
        return replace(
            super().form(),
            tools=tuple(tool.tool(place) for place, tool in enumerate(self.tools)),
            choice="required" if isinstance(chosen, ChosenFunction) else chosen,
            callable=chosen.function.name if isinstance(chosen, ChosenFunction) else None,
            several=self.parallel_tool_calls and not named,
        )

    @property
    def described_tools(self) -> list[dict[str, Any]]:
        """The functions that may be called, for the chat template."""
        return [tool.described() for tool in self.tools]

    @model_validator(mode="after")
    def _logprobs_together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs needs logprobs=true.", "top_logprobs")
        return self

    @property
    def requested_logprobs(self) -> int | None:
        """How many likeliest tokens to report at each position; None for no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompareRequest(Conversation):
    """`POST /v1/compare`: one prompt for many models at once."""

    refused: ClassVar[Refused] = {
        **_REFUSED_IN_CHAT,
        "n": (1,),
        "parallel_tool_calls": (),
        "tool_choice": ("none",),
        "tools": ([],),
    }
    models: Items[str] = Field(min_length=1)
    temperature: float = Field(0.0, ge=0, le=2)
    stream: bool = True

    @property
    def count_field(self) -> str:
        """The field that asks for more than one answer."""
        return "models"
