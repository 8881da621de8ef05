"""Training as a textbook writes it: no Trainer, no batch layouts, one sequence a forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from manytune.data.encoding.encoded import Encoded


def train(
    model: nn.Module,
    windows: Sequence[Sequence[Encoded]],
    *,
    learning_rates: Sequence[float],
    max_grad_norm: float,
) -> list[float]:
    """Take one AdamW step a window; return each window's mean loss per target token.

    Semantics, with W the rows of one window and T its number of target tokens:

        loss = (1 / T) * sum over rows, over target tokens of -log p(token | the tokens before it)
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    model.train()
    losses = []
    for window, rate in zip(windows, learning_rates, strict=True):
        targets = sum(len(row.completion_ids) for row in window)
        total = 0.0
        for row in window:
            ids = torch.tensor([row.prompt_ids + row.completion_ids])
            logits = model(input_ids=ids).logits[0, len(row.prompt_ids) - 1 : -1]
            loss = F.cross_entropy(logits, torch.tensor(row.completion_ids), reduction="sum") / targets
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trainable, max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses
