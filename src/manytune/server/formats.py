"""The engine's outputs in the shapes of OpenAI's answers."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from manytune.engine.request import FinishReason, Output, TokenLogprobs, Usage


@dataclass
class PartialAnswer:
    """One answer so far.

    Attributes:
        text: Its text.
        tokens: Its tokens, the end token included.
        logprobs: One for each of them, if the request asked for them.
        prompt_logprobs: Those of the prompt's tokens but the first, if the request asked for them.
        reason: Why it ended; None while it runs.
        usage: Token counts.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    reason: FinishReason | None = None
    usage: Usage = field(default_factory=lambda: Usage(0, 0, 0))

    def add(self, output: Output) -> list[TokenLogprobs]:
        """Add an event; returns the log probabilities that it adds to the answer."""
        self.text += output.text
        self.reason = output.finish_reason
        self.usage = output.usage
        self.prompt_logprobs = self.prompt_logprobs or output.prompt_logprobs
        new = [] if output.logprobs is None else [output.logprobs]
        self.tokens += [] if output.token_id is None else [output.token_id]
        self.logprobs += new
        return new


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
