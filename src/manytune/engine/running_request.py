"""A request while it is in the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from manytune.engine.constraint import Matcher
from manytune.engine.detokenize import TextStream, decode
from manytune.engine.masks import Mask
from manytune.engine.model_input import ModelInput
from manytune.engine.prompt_lookup import PromptLookup
from manytune.engine.request import Completion, FinishReason, Output, Request, TokenLogprobs, Usage
from manytune.engine.runner import NextToken, PromptChunk
from manytune.engine.sampling import Sampler, token_logprobs
from manytune.engine.scheduler import Job
from manytune.mixed.stacks import Snapshot, digest_of


@dataclass(kw_only=True)
class RunningRequest:
    """A request and its progress, from submission to its end.

    Attributes:
        request: The request.
        adapter: Its adapter, as it was when the request was submitted.
        sampler: Chooses its tokens.
        text: Detokenizes them; None if the text isn't needed before the end.
        end_ids: Tokens that end its answer.
        matcher: What its constraint allows next; None if it has none.
        lookup: Guesses its next tokens; None if they aren't drafted.
        input: What is read before the first of them is chosen.
        forced: By place in the answer, the mask of a token that the model's generation settings force there.
        tokens: The tokens chosen so far, the end token included.
        cached_tokens: Prompt tokens that weren't read again: those of a cached prefix, or of an encoder's equal input.
        is_admitted: Whether it is in the batch, and no longer in the queue.
        prompt_logprobs: Those of the prompt's tokens so far; None if they aren't wanted, or were given out.
        has_failed: Whether any logits of its prompt are NaN or Inf.
    """

    request: Request
    adapter: Snapshot | None
    sampler: Sampler
    text: TextStream | None
    end_ids: frozenset[int]
    input: ModelInput
    forced: Mapping[int, Tensor] = field(default_factory=dict)
    matcher: Matcher | None = None
    lookup: PromptLookup | None = None
    tokens: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    is_admitted: bool = False
    prompt_logprobs: list[TokenLogprobs] | None = None
    has_failed: bool = False

    def __post_init__(self) -> None:
        if self.request.params.prompt_logprobs is not None:
            self.prompt_logprobs = []

    # -- what is to be read

    def job(self) -> Job:
        """The request as the scheduler sees it."""
        source = self.input.source
        return Job(
            self.request.id,
            self.input.embedded_tokens + len(self.input.tokens),
            self.input.max_tokens,
            self.request.tenant,
            digest_of(self.adapter),
            self.request.priority,
            # What is scored has to be read, so there is nothing to wait for.
            self.input.prefix_keys if self.prompt_logprobs is None else (),
            source_tokens=0 if source is None else source.length,
            source_key=b"" if source is None else source.key,
        )

    def chunk(self, start: int, count: int, *, wants_logits: bool) -> PromptChunk:
        """A chunk of the virtual tokens and the prompt, divided into embeddings and token ids."""
        embedded, end = self.input.embedded_tokens, start + count
        embeddings = None
        if self.input.embeddings is not None and start < embedded:
            embeddings = self.input.embeddings[start : min(end, embedded)]
        tokens = self.input.tokens[max(0, start - embedded) : max(0, end - embedded)]
        is_scored = self.prompt_logprobs is not None
        return PromptChunk(self.request.id, tokens, self.adapter, embeddings, wants_logits, is_scored)

    def next_token(self, draft: tuple[int, ...]) -> NextToken:
        """The last token, which the next forward reads, and guesses of those after it."""
        return NextToken(self.request.id, self.tokens[-1], self.adapter, draft)

    def score(self, logits: Tensor) -> None:
        """Append log probabilities of the prompt.

        Args:
            logits: (tokens, vocabulary), those of the tokens of its next chunk.
        """
        assert self.prompt_logprobs is not None and self.request.params.prompt_logprobs is not None
        first = len(self.prompt_logprobs) + 1  # nothing predicts the first token
        tokens = self.request.prompt_ids[first : first + len(logits)]
        self.has_failed |= not bool(logits.amax(1).isfinite().all())  # NaN counts as the largest
        logits = logits.nan_to_num() if self.has_failed else logits
        top = self.request.params.prompt_logprobs
        self.prompt_logprobs += token_logprobs(logits[: len(tokens)], tokens, top)

    # -- what comes out

    @property
    def wants_token(self) -> bool:
        """Whether a token is chosen once the prompt has been read."""
        return self.request.params.max_new_tokens > 0

    @property
    def mask(self) -> Mask | None:
        """Computes which tokens may be next; None if any may."""
        return None if self.matcher is None and len(self.tokens) not in self.forced else self.allowed

    def allowed(self) -> Tensor:
        """Which tokens may be next, (vocabulary,), bool: a forced one, or what its constraint allows."""
        forced = self.forced.get(len(self.tokens))
        if forced is not None:
            return forced
        assert self.matcher is not None
        mask = self.matcher.allowed()
        if self.matcher.may_end:
            mask[list(self.end_ids)] = True
        return mask

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        return Usage(len(self.request.prompt_ids), self.cached_tokens, len(self.tokens))

    def add_token(self, token: int, logprobs: TokenLogprobs | None) -> Output:
        """Append a token to the answer, which may end with it."""
        is_forced = len(self.tokens) in self.forced
        self.tokens.append(token)
        if self.lookup is not None:
            self.lookup.add(token)
        text, reason = "", self._reason_to_stop(token)
        if is_forced and len(self.tokens) == self.request.params.max_new_tokens:
            reason = "length"  # the model didn't end the answer itself
        if reason is None and self.text is not None:
            text, is_stopped = self.text.push(token)
            reason = "stop" if is_stopped else None
        # A constraint may know nothing of what is forced before the answer.
        if reason is None and self.matcher is not None and not (is_forced and not self._fits(token)):
            self.matcher.accept(token)
            reason = "stop" if self.matcher.must_end else None
        if reason is None and len(self.tokens) == self.request.params.max_new_tokens:
            reason = "length"
        if reason is not None and self.text is not None:
            rest, is_stopped = self.text.finish()
            text, reason = text + rest, "stop" if is_stopped else reason
        return self._output(token, text, reason, logprobs)

    def end(self, reason: FinishReason) -> Output:
        """End the answer without another token."""
        rest = self.text.finish()[0] if self.text is not None else ""
        if reason != "length":
            self.prompt_logprobs = None  # some are missing, or aren't numbers
        return self._output(None, rest, reason, None)

    def end_of_constraint(self) -> Output:
        """End the answer where its constraint allows no token."""
        assert self.matcher is not None
        return self.end("stop" if self.matcher.may_end else "constraint")

    def completion(self, tokenizer: Any, outputs: Sequence[Output], end_ids: frozenset[int]) -> Completion:
        """The whole answer.

        Args:
            tokenizer: Decodes the tokens, if the outputs have no text.
            outputs: All outputs of the request.
            end_ids: Tokens without a text, whether or not they end this answer.
        """
        reason = outputs[-1].finish_reason
        assert reason is not None, f"{self.request.id} hasn't ended"
        is_ended = bool(self.tokens) and self._reason_to_stop(self.tokens[-1]) is not None
        tokens = self.tokens[:-1] if is_ended else self.tokens
        has_text = self.text is not None
        silent_ids = end_ids | self.request.silent_ids
        text = (
            "".join(output.text for output in outputs) if has_text else decode(tokenizer, tokens, silent_ids)
        )
        logprobs = tuple(output.logprobs for output in outputs if output.logprobs is not None)
        return Completion(
            self.request.id, tuple(tokens), text, reason, logprobs, self.usage, outputs[0].prompt_logprobs
        )

    def _output(
        self, token: int | None, text: str, reason: FinishReason | None, logprobs: TokenLogprobs | None
    ) -> Output:
        given, self.prompt_logprobs = self.prompt_logprobs, None
        prompt_logprobs = None if given is None else tuple(given)
        return Output(self.request.id, token, text, reason, logprobs, self.usage, prompt_logprobs)

    def _fits(self, token: int) -> bool:
        return self.matcher is not None and bool(self.matcher.allowed()[token])

    def _reason_to_stop(self, token: int) -> FinishReason | None:
        return "stop" if token in self.end_ids else None
