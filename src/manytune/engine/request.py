"""The engine's input and output: frozen records without tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from manytune.engine.constraint import Constraint
from manytune.errors import RequestError

#: Why a request ended: an end token, a stop string or the end of what its constraint allows; its token limit; its
#: caller; logits with NaN or Inf; a constraint that no token fits any more, or that is too complex at some point; or
#: memory that there wasn't.
FinishReason = Literal["stop", "length", "cancelled", "failed", "constraint", "memory"]


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: Limit on the answer, in tokens.
        temperature: 0 takes the likeliest token; else logits are divided by it and a token is drawn.
        top_k: Draw among this many likeliest tokens.
        top_p: Draw among the likeliest tokens that together have this probability.
        min_p: Draw among tokens whose probability is at least this share of the likeliest one's.
        repetition_penalty: Divide positive logits of tokens in the prompt or the answer by it, and multiply negative
            ones (Keskar et al., arXiv 1909.05858). What an encoder has read doesn't count.
        presence_penalty: Take this off the logit of each token that occurs in the answer so far.
        frequency_penalty: Take this off the logit of a token for each time it occurs in the answer so far.
        stop: Strings that end the answer; they aren't part of it.
        stop_token_ids: Tokens that end the answer, whatever `ignore_eos` says; they aren't part of it.
        logit_bias: Added to the logits of these tokens.
        logprobs: Report log probabilities of the chosen token and of this many likeliest ones; None for none.
        prompt_logprobs: The same for the tokens of the prompt, each given those before it. With them `max_new_tokens`
            may be 0.
        seed: Seed of the draws. The same request with the same seed gives the same answer, whatever else is in the
            batch.
        ignore_eos: Continue after an end token, up to the limit.

    Raises:
        RequestError: A value is out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    seed: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        ranges = (
            (
                "max_new_tokens",
                self.max_new_tokens >= (1 if self.prompt_logprobs is None else 0),
                "at least 1, or 0 with prompt_logprobs",
            ),
            ("temperature", 0.0 <= self.temperature < math.inf, "0 or a positive number"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1, or None"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "from 0 to 1"),
            ("repetition_penalty", 0.0 < self.repetition_penalty < math.inf, "a positive number"),
            ("presence_penalty", math.isfinite(self.presence_penalty), "a finite number"),
            ("frequency_penalty", math.isfinite(self.frequency_penalty), "a finite number"),
            (
                "stop",
                not isinstance(self.stop, str) and all(self.stop),
                "a tuple of strings that aren't empty",
            ),
            *(
                (name, number is None or number >= 0, "0 or more, or None")
                for name, number in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs))
            ),
        )
        for name, fits, expected in ranges:
            if not fits:
                raise RequestError(f"{name}={getattr(self, name)!r}: expected {expected}.")


@dataclass(frozen=True)
class Request:
    """One prompt to answer.

    Attributes:
        id: A name that no other request in the engine has.
        prompt_ids: The prompt's tokens. An encoder-decoder's encoder reads them.
        params: How to generate.
        adapter: Name of the adapter to use; None for the plain base.
        tenant: Whom it belongs to. Tenants get equal shares of the engine, and never each other's cached prefixes.
        priority: Higher goes first; waiting raises it.
        opening: What the chat template writes between the prompt and an answer; no stop string is sought in it.
        constraint: What the answer must look like; None for no constraint. An answer that is cut off at its limit is a
            beginning of such an answer.
        silent_ids: Tokens that have no text in the answer, in addition to those that end answers.

    Raises:
        RequestError: The prompt is empty.
    """

    id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    adapter: str | None = None
    tenant: str = "default"
    priority: int = 0
    opening: str = ""
    constraint: Constraint | None = None
    silent_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise RequestError(
                f"request {self.id!r} has no prompt tokens; a model needs at least one to continue from."
            )


@dataclass(frozen=True)
class TokenLogprobs:
    """Log probabilities at one position of an answer or a prompt, before any sampling option or constraint.

    Attributes:
        token_id: The chosen token, or the prompt's.
        logprob: Its log probability.
        top: The likeliest tokens with theirs, likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """Token counts of a request so far.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        cached_tokens: How many of them came from a cached prefix.
        completion_tokens: Generated tokens, the end token included.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Output:
    """An event of one request: a token, its end, or both.

    Attributes:
        request_id: The request.
        token_id: The token that was chosen, also if it is an end token; None if the request was cancelled or failed.
        text: The new text of the answer: whole characters only, and nothing that may still turn out to be the beginning
            of a stop string. The last event contains whatever was held back.
        finish_reason: Why the request ended; None while it runs.
        logprobs: The token's, if the request asked for them.
        usage: Token counts so far.
        prompt_logprobs: Those of the prompt's tokens but the first, with the first event of a request that asked for
            them; else None.
    """

    request_id: str
    token_id: int | None
    text: str
    finish_reason: FinishReason | None
    logprobs: TokenLogprobs | None
    usage: Usage
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True)
class Completion:
    """A request's whole answer.

    Attributes:
        request_id: The request.
        token_ids: The tokens, without the end token.
        text: Their text, special tokens in it, cut before a stop string.
        finish_reason: Why it ended.
        logprobs: One for each token, the end token included, if the request asked for them.
        usage: Token counts.
        prompt_logprobs: One for each token of the prompt but the first, if the request asked for them.
    """

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...]
    usage: Usage
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
