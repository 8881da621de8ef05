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


def beam_search(model, prompt, *, max_new_tokens, beams, end_id):
    """The tokens of the answer whose mean log probability a token, the end token's too, is the highest that is found.

    At each step the likeliest `beams` unfinished answers go on; of finished ones as many are kept. It ends when the
    best unfinished answer can't become better than the worst that is kept, which transformers takes to be so when it
    isn't better now.
    """
    alive, finished = [(0.0, ())], []
    for length in range(1, max_new_tokens + 1):
        found = []
        for total, tokens in alive:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, -1]
            for token, value in enumerate(logits.log_softmax(0).tolist()):
                found.append((total + value, (*tokens, token)))
        found.sort(reverse=True)
        # Only an answer among the best counts as finished.
        finished += [(total / length, tokens) for total, tokens in found[:beams] if tokens[-1] == end_id]
        finished = sorted(finished, reverse=True)[:beams]
        alive = [(total, tokens) for total, tokens in found[: 2 * beams] if tokens[-1] != end_id][:beams]
        if len(finished) == beams and alive[0][0] / length <= finished[-1][0]:
            break
    else:
        finished += [(total / max_new_tokens, tokens) for total, tokens in alive]
    best = max(finished)[1]
    return best[:-1] if best[-1] == end_id else best


def negative_log_likelihood(model, prompt, completion):
    """`-sum_t log p(completion_t | everything before it)` in nats."""
    total = 0.0
    for place, token in enumerate(completion):
        seen = list(prompt) + list(completion[:place])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([seen])).logits[0, -1]
        total -= float(torch.log_softmax(logits.double(), dim=0)[token])
    return total
