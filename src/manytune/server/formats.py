"""The engine's outputs in the shapes of OpenAI's answers."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field
from typing import Any

from manytune.data.answer_format import BARE, AnswerFormat, AnswerStream
from manytune.engine.request import FinishReason, Output, TokenLogprobs, Usage


@dataclass(frozen=True)
class Delta:
    """What an event adds to an answer.

    Attributes:
        text: To its text.
        reasoning: To what was written before it.
        tokens: The token, if there is one.
        logprobs: Those of its token, if the request asked for them.
        prompt_logprobs: Those of the prompt's tokens but the first, with the first event of a request that asked for
            them.
    """

    text: str = ""
    reasoning: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass
class PartialAnswer:
    """One answer so far.

    Attributes:
        format: What is an answer in the text that is generated.
        text: Its text.
        reasoning: What the model wrote before it.
        tokens: Its tokens, the end token included.
        logprobs: One for each of them, if the request asked for them.
        prompt_logprobs: Those of the prompt's tokens but the first, if the request asked for them.
        reason: Why it ended; None while it runs.
        usage: Token counts.
    """

    format: InitVar[AnswerFormat] = BARE
    text: str = ""
    reasoning: str = ""
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
        self.text += text
        self.reasoning += reasoning
        self.reason = output.finish_reason
        self.usage = output.usage
        self.prompt_logprobs = self.prompt_logprobs or output.prompt_logprobs
        tokens = () if output.token_id is None else (output.token_id,)
        logprobs = () if output.logprobs is None else (output.logprobs,)
        self.tokens.extend(tokens)
        self.logprobs.extend(logprobs)
        return Delta(text, reasoning, tokens, logprobs, output.prompt_logprobs)

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message of a conversation."""
        reasoning = {"reasoning_content": self.reasoning} if self.reasoning else {}
        return {"role": "assistant", "content": self.text, **reasoning, "refusal": None}


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
