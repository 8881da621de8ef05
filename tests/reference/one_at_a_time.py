"""The slow twin of `engine/static_batch.py`: one sequence, no padding, no cache, one forward a token."""

from __future__ import annotations

import torch


def greedy(model, prompt, *, max_new_tokens, stop_ids):
    """The tokens that greedy decoding adds to `prompt`, without the end token, and why it ended."""
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens])).logits
        token = int(logits[0, -1].argmax())
        if token in stop_ids:
            return tuple(tokens[len(prompt) :]), "stop"
        tokens.append(token)
    return tuple(tokens[len(prompt) :]), "length"


def negative_log_likelihood(model, prompt, completion):
    """`-sum_t log p(completion_t | everything before it)` in nats."""
    total = 0.0
    for place, token in enumerate(completion):
        seen = list(prompt) + list(completion[:place])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([seen])).logits[0, -1]
        total -= float(torch.log_softmax(logits.double(), dim=0)[token])
    return total
