"""Choosing the next token from logits.

A constraint leaves some of the tokens. The order of the options is that of transformers' generation: bias and penalties
on the logits, temperature, then top-k, top-p and min-p on what is left. Semantics: `tests/reference/sampling.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from manytune.engine.request import SamplingParams, TokenLogprobs

# How many of the likeliest tokens top-p looks at first.
_FIRST = 256
# Positions whose log probabilities are computed at once.
_POSITIONS = 64

_SMALLEST, _LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
#: Replaces a log probability of -inf, as in OpenAI's API.
_UNLIKELY = -9999.0


class Sampler:
    """Chooses one request's tokens.

    Args:
        params: The sampling options.
        prompt_ids: The prompt, whose tokens the repetition penalty includes.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int]) -> None:
        self.params = params
        self._prompt = torch.tensor(sorted(set(prompt_ids)))
        self._answer: Counter[int] = Counter()
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)
        penalised = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0
        self._adjusts = bool(penalised or params.logit_bias)
        #: Whether the next token is the argmax of the logits, without log probabilities.
        self.is_greedy = not self._adjusts and params.temperature == 0.0 and params.logprobs is None

    def sample(self, logits: Tensor, allowed: Tensor | None = None) -> tuple[int, TokenLogprobs | None]:
        """The next token.

        Args:
            logits: The model's logits, (vocabulary,).
            allowed: The tokens to choose among, (vocabulary,), bool; None for all.
        """
        logits = logits.float()
        choice = logits if allowed is None else logits.masked_fill(~allowed, -math.inf)
        adjusted = self._adjusted(choice) if self._adjusts else choice
        token = int(adjusted.argmax()) if self.params.temperature == 0.0 else self._draw(adjusted)
        if self._adjusts:
            self._answer[token] += 1
        return token, self._logprobs(logits, token)

    def _adjusted(self, logits: Tensor) -> Tensor:
        params, logits = self.params, logits.clone()
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=logits.device)
            logits[ids] += torch.tensor(list(params.logit_bias.values()), device=logits.device)
        answer = torch.tensor(list(self._answer), dtype=torch.long)
        if params.repetition_penalty != 1.0:
            seen = torch.cat((self._prompt, answer)).unique().to(logits.device)
            found, penalty = logits[seen], _within(params.repetition_penalty)
            logits[seen] = torch.where(found > 0, found / penalty, found * penalty)
        if self._answer and (params.presence_penalty or params.frequency_penalty):
            counts = torch.tensor(list(self._answer.values()), dtype=logits.dtype, device=logits.device)
            logits[answer.to(logits.device)] -= params.presence_penalty + params.frequency_penalty * counts
        return logits.clamp_(max=_LARGEST)

    def _draw(self, logits: Tensor) -> int:
        params = self.params
        # The largest score is 0, so that no score is infinite, however small the temperature.
        scores = (logits - logits.max()) / _within(params.temperature)
        ids: Tensor | None = None
        if params.top_k is not None:
            scores, ids = scores.topk(min(params.top_k, len(scores)))
        probabilities = scores.softmax(0)
        if params.top_p < 1.0:
            probabilities, order = _likeliest(probabilities, params.top_p)
            ids = order if ids is None else ids[order]
        if params.min_p > 0.0:
            probabilities = probabilities * (probabilities >= params.min_p * probabilities.max())
        # On the CPU, so that a seed gives the same draws on every device.
        place = int(torch.multinomial(probabilities.cpu(), 1, generator=self._generator))
        return place if ids is None else int(ids[place])

    def _logprobs(self, logits: Tensor, token: int) -> TokenLogprobs | None:
        if self.params.logprobs is None:
            return None
        return token_logprobs(logits[None], [token], self.params.logprobs)[0]


def token_logprobs(logits: Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprobs]:
    """Log probabilities of one token at each position, and of the likeliest ones there.

    Args:
        logits: (positions, vocabulary), without NaN.
        tokens: One token for each position.
        top: How many of the likeliest tokens.
    """
    found: list[TokenLogprobs] = []
    # In parts, so that little memory is needed next to the logits.
    for start in range(0, len(tokens), _POSITIONS):
        chosen = tokens[start : start + _POSITIONS]
        log = logits[start : start + _POSITIONS].float().log_softmax(1).clamp_(min=_UNLIKELY)
        own = log.gather(1, torch.tensor(chosen, device=log.device)[:, None])[:, 0].tolist()
        values, ids = log.topk(min(top, log.shape[1]))
        found += [
            TokenLogprobs(token, logprob, tuple(zip(likeliest, logprobs, strict=True)))
            for token, logprob, likeliest, logprobs in zip(
                chosen, own, ids.tolist(), values.tolist(), strict=True
            )
        ]
    return found


def sample_tokens(
    logits: Tensor, samplers: Sequence[Sampler], allowed: Sequence[Tensor | None] | None = None
) -> list[tuple[int, TokenLogprobs | None] | None]:
    """The next token of each request; those of greedy requests in one operation.

    Args:
        logits: (requests, vocabulary).
        samplers: One for each request.
        allowed: For each request the tokens to choose among, (vocabulary,), bool, at least one of them; None for all.

    Returns:
        For each request its token and log probabilities; None if its logits contain NaN or infinity.
    """
    likeliest, largest = _argmax(logits)
    masks: Sequence[Tensor | None] = [None] * len(samplers) if allowed is None else allowed
    masks = [None if mask is None else mask.to(logits.device) for mask in masks]
    found: list[tuple[int, TokenLogprobs | None] | None] = []
    for place, (sampler, mask) in enumerate(zip(samplers, masks, strict=True)):
        if not math.isfinite(largest[place]):
            found.append(None)
        elif not sampler.is_greedy:
            found.append(sampler.sample(logits[place], mask))
        elif mask is None:
            found.append((likeliest[place], None))
        else:
            # Few, or all that may be in a text: less to read than the whole row.
            ids = mask.nonzero().flatten()
            found.append((int(ids[logits[place, ids].argmax()]), None))
    return found


def _argmax(logits: Tensor) -> tuple[list[int], list[float]]:
    """The place of the largest of each row, and the largest itself; NaN counts as the largest."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        # In one thread. After an operation in several, torch's threads wait actively for the next one, and would take
        # the cores from OpenVINO's at the beginning of the next step.
        rows = logits.numpy()
        places = rows.argmax(1)
        return places.tolist(), rows[np.arange(len(rows)), places].tolist()
    ids = logits.argmax(1, keepdim=True)
    return ids.flatten().tolist(), logits.gather(1, ids).flatten().tolist()


def _within(number: float) -> float:
    """The nearest positive number that float32 can represent."""
    return min(max(number, _SMALLEST), _LARGEST)


def _likeliest(probabilities: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Probabilities and ids of the likeliest tokens that together have a share of the probability, likeliest first."""
    size = min(_FIRST, len(probabilities))
    while True:
        found, ids = probabilities.topk(size)
        total = found.cumsum(0)
        # Sorting the whole vocabulary takes many times as long, and is seldom needed.
        if size == len(probabilities) or float(total[-1]) >= share:
            count = max(1, int((total - found < share).sum()))  # the likeliest, however small the share
            return found[:count], ids[:count]
        size = min(8 * size, len(probabilities))
