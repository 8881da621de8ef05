"""The engine's outputs in the shapes of OpenAI's answers."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field
from typing import Any

from manytune.data.encoding.answer_format import BARE, AnswerFormat, AnswerStream
from manytune.engine.request import FinishReason, Output, TokenLogprobs, Usage
from manytune.server.tools.calls import CallDelta, CallReader


@dataclass
class CalledTool:
    """A call of an answer, as far as it has been written.

    Attributes:
        id: Its name for the tool's answer.
        name: The function.
        arguments: JSON, or the beginning of it if the answer was cut off.
    """

    id: str
    name: str
    arguments: str

    def body(self) -> dict[str, Any]:
        """The call in a message."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


@dataclass(frozen=True)
class Delta:
    """What an event adds to an answer.

    Attributes:
        text: To its text.
        reasoning: To what was written before it.
        calls: What is new of its tool calls.
        tokens: The token, if there is one.
        logprobs: Those of its token, if the request asked for them.
        prompt_logprobs: Those of the prompt's tokens but the first, with the first event of a request that asked for
            them.
    """

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass
class PartialAnswer:
    """One answer so far.

    Attributes:
        format: What is an answer in the text that is generated.
        reader: Reads its tool calls, if it may have any.
        text: Its text.
        reasoning: What the model wrote before it.
        calls: Its tool calls.
        tokens: Its tokens, the end token included.
        logprobs: One for each of them, if the request asked for them.
        prompt_logprobs: Those of the prompt's tokens but the first, if the request asked for them.
        reason: Why it ended; None while it runs.
        usage: Token counts.
    """

    format: InitVar[AnswerFormat] = BARE
    reader: CallReader | None = None
    text: str = ""
    reasoning: str = ""
    calls: list[CalledTool] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    reason: FinishReason | None = None
    usage: Usage = field(default_factory=lambda: Usage(0, 0, 0))

    def __post_init__(self, format: AnswerFormat) -> None:
        self._stream = AnswerStream(format)

    def add(self, output: Output) -> Delta:
        """Add an event; returns what it adds to the answer."""
        new = self._stream.push(output.text)
        text, reasoning = new.content, new.reasoning
        if output.finish_reason is not None:
            rest = self._stream.finish()
            text, reasoning = text + rest.content, reasoning + rest.reasoning
        text, calls = self._read(text, ended=output.finish_reason is not None)
        self.text += text
        self.reasoning += reasoning
        self.reason = output.finish_reason
        self.usage = output.usage
        self.prompt_logprobs = self.prompt_logprobs or output.prompt_logprobs
        tokens = () if output.token_id is None else (output.token_id,)
        logprobs = () if output.logprobs is None else (output.logprobs,)
        self.tokens.extend(tokens)
        self.logprobs.extend(logprobs)
        return Delta(text, reasoning, calls, tokens, logprobs, output.prompt_logprobs)

    @property
    def finish_reason(self) -> str | None:
        """Why it ended, as OpenAI says it."""
        return finish_reason(self.reason, has_calls=bool(self.calls))

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message of a conversation."""
        reasoning = {"reasoning_content": self.reasoning} if self.reasoning else {}
        calls = {"tool_calls": [call.body() for call in self.calls]} if self.calls else {}
        text = self.text if self.text or not calls else None
        return {"role": "assistant", "content": text, **reasoning, **calls, "refusal": None}

    def _read(self, text: str, *, ended: bool) -> tuple[str, tuple[CallDelta, ...]]:
        """The text that is new, and what is new of calls."""
        if self.reader is None:
            return text, ()
        parts = [self.reader.push(text)] if text else []
        if ended:
            parts.append(self.reader.finish())
        deltas = tuple(delta for part in parts for delta in part.calls)
        for delta in deltas:
            if delta.name is not None and delta.id is not None:
                self.calls.append(CalledTool(delta.id, delta.name, delta.arguments))
            else:
                self.calls[delta.index].arguments += delta.arguments
        return "".join(part.text for part in parts), deltas


def finish_reason(reason: FinishReason | None, *, has_calls: bool) -> str | None:
    """Why an answer ended, as OpenAI says it: an answer with calls that wasn't cut off ended for them."""
    return "tool_calls" if has_calls and reason == "stop" else reason


def delta_body(delta: CallDelta) -> dict[str, Any]:
    """A call's delta in a stream: the function's name first, then its arguments."""
    if delta.name is None:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    function = {"name": delta.name, "arguments": delta.arguments}
    return {"index": delta.index, "id": delta.id, "type": "function", "function": function}


@dataclass(frozen=True)
class Envelope:
    """The fields that all chunks of one answer have in common.

    Attributes:
        kind: Prefix of the answer's id: `"chatcmpl"` or `"cmpl"`.
        model: The model's name in the request.
        fingerprint: Identifies the version of the model.
        id: The answer's id, without the prefix.
        created: Time in seconds since 1970.
    """

    kind: str
    model: str
    fingerprint: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def wrap(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """An object of a kind, such as `"chat.completion"`, with these choices."""
        return {
            "id": f"{self.kind}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            **more,
        }


def usage_of(answers: Iterable[PartialAnswer], prompts: Iterable[PartialAnswer]) -> dict[str, Any]:
    """Token counts of a response.

    Args:
        answers: All answers.
        prompts: One answer to each prompt: a prompt counts once, however many answers it has.
    """
    prompts = list(prompts)
    prompt = sum(one.usage.prompt_tokens for one in prompts)
    completion = sum(one.usage.completion_tokens for one in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(one.usage.cached_tokens for one in prompts)},
    }


def event(content: object) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


DONE = "data: [DONE]\n\n"
