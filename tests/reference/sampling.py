"""The slow twin of `engine/sampling.py`: transformers' own logits processors, and a sum over tokens."""

from __future__ import annotations

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def probabilities(params, logits, prompt, answer):
    """The distribution that a token is drawn from, (vocabulary,)."""
    logits = logits.clone()
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    chain = LogitsProcessorList()
    if params.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    seen = torch.tensor([[*prompt, *answer]])
    logits = chain(seen, logits[None])[0]
    for token in set(answer):
        logits[token] -= params.presence_penalty + params.frequency_penalty * answer.count(token)
    chain = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k is not None:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        chain.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0.0:
        chain.append(MinPLogitsWarper(params.min_p))
    return chain(seen, logits[None])[0].softmax(0)
