"""From a forward's logits to the next tokens of each request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from manytune.engine.request import Output, TokenLogprobs
from manytune.engine.running_request import RunningRequest
from manytune.engine.sampling import sample_tokens
from manytune.free_memory import is_short_memory


@dataclass(frozen=True)
class Forward:
    """What a forward gives.

    Attributes:
        decoding: The requests that decode.
        ready: Those whose prompts end in it.
        drafts: The drafted tokens of each that decodes.
        reads_prompts: Whether it has read prompts, too.
        logits: For the next token of each, (requests, vocabulary): those of `decoding`, then those of `ready`.
        more: By request, (tokens, vocabulary): those of prompts that are scored, and those of drafted tokens.
        masks: Which tokens each may continue with, (vocabulary,), bool, or None.
    """

    decoding: list[RunningRequest]
    ready: list[RunningRequest]
    drafts: list[tuple[int, ...]]
    reads_prompts: bool
    logits: Tensor
    more: Mapping[str, Tensor]
    masks: list[Tensor | None]

    @property
    def choosing(self) -> tuple[RunningRequest, ...]:
        """The requests that get a token."""
        return (*self.decoding, *self.ready)

    @property
    def drafted(self) -> dict[str, tuple[int, ...]]:
        """The drafted tokens by request, of those that have any."""
        drafts = zip(self.decoding, self.drafts, strict=True)
        return {running.request.id: draft for running, draft in drafts if draft}


def next_tokens(forward: Forward) -> dict[str, list[Output]]:
    """By request its next token, and of one with a draft as many more as were drafted rightly.

    A draft is followed as long as the chosen token is the drafted one. Each token is chosen as it would be without a
    draft: after those before it, with the same options, constraint and draws.

    Raises:
        RuntimeError: There isn't enough memory; no token was chosen then.
    """
    are_stuck = [_is_stuck(mask) for mask in forward.masks]
    among = [None if is_stuck else mask for mask, is_stuck in zip(forward.masks, are_stuck, strict=True)]
    sampled = sample_tokens(forward.logits, [running.sampler for running in forward.choosing], among)
    drafted = forward.drafted
    outputs: dict[str, list[Output]] = {}
    for running, token, is_stuck in zip(forward.choosing, sampled, are_stuck, strict=True):
        name = running.request.id
        own = outputs[name] = [_next(running, token, is_stuck=is_stuck)]
        if name in drafted:
            _follow(running, drafted[name], forward.more[name], own)
    return outputs


def _follow(running: RunningRequest, draft: tuple[int, ...], logits: Tensor, outputs: list[Output]) -> None:
    """Append to a request's outputs the tokens that follow its draft's."""
    for token, row in zip(draft, logits.split(1), strict=True):
        if outputs[-1].finish_reason is not None or outputs[-1].token_id != token:
            return
        try:
            mask = running.mask
            allowed = None if mask is None else mask()
            is_stuck = _is_stuck(allowed)
            (sampled,) = sample_tokens(row, [running.sampler], [None if is_stuck else allowed])
        except Exception as error:
            if not is_short_memory(error):
                raise
            outputs.append(running.end("memory"))
            return
        outputs.append(_next(running, sampled, is_stuck=is_stuck))


def _next(
    running: RunningRequest, token: tuple[int, TokenLogprobs | None] | None, *, is_stuck: bool
) -> Output:
    # Without finite logits there is no answer: the adapter's values have diverged.
    if token is None or running.has_failed:
        return running.end("failed")
    if is_stuck:
        return running.end_of_constraint()
    return running.add_token(*token) if running.wants_token else running.end("length")


def _is_stuck(mask: Tensor | None) -> bool:
    return mask is not None and not mask.numpy().any()
