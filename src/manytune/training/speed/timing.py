"""How long a forward and a backward pass over a batch take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from manytune.training.batches import AnyBatch
from manytune.training.speed.chunked_cross_entropy import loss_sum
from manytune.training.speed.frozen_layers import LowerLayers, every_layer_runs


def forward_backward_seconds(
    model: nn.Module,
    batch: AnyBatch,
    trained: Sequence[nn.Parameter],
    *,
    lower: LowerLayers = every_layer_runs,
) -> float:
    """Time a forward and a backward pass of the mean loss, and moving the batch to the model's device.

    Args:
        model: In training mode, prepared for the batch's layout.
        batch: On any device.
        trained: The parameters that get a gradient; it is gone afterwards.
        lower: Whether the lower layers run.
    """

    def run() -> None:
        moved = batch.to(trained[0].device)
        with lower(moved):
            loss = loss_sum(model, moved) / moved.targets
        loss.backward()

    seconds = seconds_of(run)
    for parameter in trained:
        parameter.grad = None
    return seconds


def seconds_of(work: Callable[[], object]) -> float:
    """Time something, the GPU's part included."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
