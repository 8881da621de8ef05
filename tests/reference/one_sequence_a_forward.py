"""The slow twin of `training/batches`: every sequence alone, and attention one query at a time."""

from __future__ import annotations

import torch
from transformers import AttentionInterface

ATTENTION = "one-query-at-a-time"


def loss_and_gradients(model, sequences):
    """Mean negative log likelihood of all completion tokens, and its gradient for each parameter by name."""
    targets = sum(len(s.completion_ids) for s in sequences)
    model.zero_grad()
    total = 0.0
    for sequence in sequences:
        tokens = [*sequence.prompt_ids, *sequence.completion_ids]
        logits = model(input_ids=torch.tensor([tokens[:-1]]), use_cache=False).logits[0]
        loss = 0.0
        for place in range(len(sequence.prompt_ids), len(tokens)):
            loss = loss - torch.log_softmax(logits[place - 1], dim=0)[tokens[place]]
        (loss / targets).backward()
        total += loss.item()
    return total / targets, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def attention(query, key, value, visible, *, scaling, softcap=None):
    """Attention from its definition, a query and a head at a time.

    Args:
        query: Shape `(heads, rows, dim)`.
        key: Shape `(key_heads, rows, dim)`.
        value: Shape `(key_heads, rows, dim)`.
        visible: For each row, the rows that its query sees.
        scaling: Factor of the scores.
        softcap: Bound of the scores, or None.

    Returns:
        Shape `(rows, heads, dim)`.
    """
    heads_per_key = query.shape[0] // key.shape[0]
    rows = []
    for row, seen in enumerate(visible):
        heads = []
        for head in range(query.shape[0]):
            scores = scaling * key[head // heads_per_key, seen] @ query[head, row]
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            heads.append(torch.softmax(scores, dim=0) @ value[head // heads_per_key, seen])
        rows.append(torch.stack(heads))
    return torch.stack(rows)


def _attention_of_one_sequence(
    module, query, key, value, attention_mask, *, scaling, sliding_window=None, softcap=None, **kwargs
):
    visible = [list(range(row + 1))[-(sliding_window or row + 1) :] for row in range(query.shape[2])]
    return attention(query[0], key[0], value[0], visible, scaling=scaling, softcap=softcap)[None], None


AttentionInterface.register(ATTENTION, _attention_of_one_sequence)
