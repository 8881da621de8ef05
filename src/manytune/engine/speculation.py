"""Which tokens a step drafts: those whose expected gain exceeds what reading them costs.

A step with drafts reads each request's last token and a few guessed ones (`prompt_lookup`), and gives logits for all of
them. Tokens are then chosen one after another as always, with the same draws, masks and penalties, for as long as the
chosen token is the guessed one; so an answer is what it is without drafts. For a guess x this is the acceptance rule of
speculative sampling (Leviathan et al. 2023, arXiv 2211.17192) with all of the draft's probability on x: a token drawn
from p is x with probability p(x), and otherwise has the distribution of p without x, renormalised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from transformers import PreTrainedModel

from manytune.engine.draft_gains import DraftGains
from manytune.engine.prompt_lookup import HitRate, PromptLookup
from manytune.engine.step_times import StepTimes
from manytune.engine.weights import Weights, rounding_of
from manytune.errors import ConfigError

#: Whether answers are drafted where it pays: those that stay the same, any, or none.
SpeculationMode = Literal["auto", "on", "off"]

#: The most drafted tokens of one request in a step, and of all.
MOST_OF_REQUEST, MOST_OF_STEP = 10, 32

# How many times its price a draft has to be worth: prices and chances are estimates, and a wrong one costs time.
_WORTH = 1.1


class Speculation:
    """Decides for an engine which tokens are drafted.

    A step of m requests without drafts takes 1 and gives m tokens. A drafted token takes r more (`StepTimes.price`) and
    gives one more with the probability c that it and those before it are right (`PromptLookup.chances`). So tokens are
    drafted in the order of c, as long as each raises the tokens of a unit of time:

        c / (m + sum of c so far) > 1.1 * r / (1 + r * number so far)

    and if all of them together do, by what about as many have taken so far (`StepTimes.added`). While drafts have lost
    time lately, there are none (`DraftGains`).

    Args:
        is_on: Whether there are any drafts.
        drafts_adapters: Whether answers of adapters are drafted, too.

    Attributes:
        drafted: Tokens that were drafted.
        accepted: How many of them were right, so that the step gave one more token each.
    """

    def __init__(self, *, is_on: bool, drafts_adapters: bool = True) -> None:
        self._is_on = is_on
        self._drafts_adapters = drafts_adapters
        self._rate = HitRate()
        self._times = StepTimes()
        self._gains = DraftGains()
        self.drafted = 0
        self.accepted = 0

    def lookup(
        self, prompt: Sequence[int], max_new_tokens: int, *, has_adapter: bool = False
    ) -> PromptLookup | None:
        """Guesses for a new request; None if its answer isn't drafted."""
        if not self._is_on or (has_adapter and not self._drafts_adapters):
            return None
        return PromptLookup(prompt, max_new_tokens, HitRate(self._rate))

    def begin_step(self) -> None:
        """Note that a step begins."""
        self._times.begin()

    def drafts(self, lookups: Sequence[PromptLookup | None]) -> list[tuple[int, ...]]:
        """The tokens to draft in a step that reads no prompts.

        Args:
            lookups: Those of the requests that decode; None for one that isn't drafted.
        """
        requests = len(lookups)
        chances = [
            (chance, place)
            for place, lookup in enumerate(lookups)
            if lookup is not None
            for chance in lookup.chances(MOST_OF_REQUEST)
        ]
        price = self._times.price(requests) if chances and not self._gains.pauses(requests) else None
        if price is None:
            return [()] * requests
        tokens, time, counts = float(requests), 1.0, [0] * requests
        for chance, place in sorted(chances, reverse=True)[:MOST_OF_STEP]:
            if chance * time <= _WORTH * price * tokens:
                break
            tokens, time = tokens + chance, time + price
            counts[place] += 1
        if (tokens - requests) <= _WORTH * requests * self._times.added(requests, sum(counts)):
            counts = [0] * requests
        if not any(counts):
            self._times.refuse(requests)
        return [
            () if lookup is None else lookup.draft(count)
            for lookup, count in zip(lookups, counts, strict=True)
        ]

    def end_step(self, requests: int, drafted: int, accepted: int) -> None:
        """Count and measure a step that read no prompts.

        Args:
            requests: How many requests it gave a token.
            drafted: How many drafted tokens it read.
            accepted: How many of them were right.
        """
        if self._is_on:
            price = self._times.end(requests, drafted)
            if drafted:
                self._gains.count(requests, accepted, price)
        self.drafted += drafted
        self.accepted += accepted


def speculation_of(
    model: PreTrainedModel,
    mode: SpeculationMode,
    *,
    weights: Weights,
    has_exact_rows: Callable[[], bool],
    has_exact_adapters: bool,
) -> Speculation:
    """An engine's speculation; answers of encoder-decoders aren't drafted, since their prompts are the encoder's.

    Several tokens at once may be summed in another order than one. In float32 that is a millionth of a logit, but where
    activations are rounded to 8 bits or bfloat16 it is enough to change answers. There `"auto"` drafts answers only
    if the logits are equal to the last bit, and those of adapters only if what they add is, too.

    Args:
        model: The base.
        mode: The mode.
        weights: The form of the base's weights.
        has_exact_rows: `Runner.has_exact_rows`.
        has_exact_adapters: `Runner.has_exact_adapters`.

    Raises:
        ConfigError: There is no such mode.
    """
    if mode not in get_args(SpeculationMode):
        raise ConfigError(f"speculation={mode!r}: expected one of {', '.join(get_args(SpeculationMode))}.")
    if mode == "off" or model.config.is_encoder_decoder:
        return Speculation(is_on=False)
    is_rounded = rounding_of(weights) is not None or model.dtype != torch.float32
    if mode == "on" or not is_rounded:
        return Speculation(is_on=True)
    return Speculation(is_on=has_exact_rows(), drafts_adapters=has_exact_adapters)
