"""The loss of a whole validation set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from manytune.data.encoding.encoded import Encoded
from manytune.sharded import has_shards
from manytune.training.batches import Builder
from manytune.training.distributed.processes import ALONE, Processes
from manytune.training.speed.chunked_cross_entropy import loss_sum
from manytune.training.speed.frozen_layers import LowerLayers, every_layer_runs


@torch.no_grad()
def mean_loss(
    model: nn.Module,
    sequences: Sequence[Encoded],
    build: Builder,
    *,
    batch_size: int,
    pad_id: int,
    lower: LowerLayers = every_layer_runs,
    processes: Processes = ALONE,
) -> float:
    """The mean negative log likelihood per target token over a set of sequences, in nats.

    The sequences are batched by length, and those of a group together, since they often share a prefix. That
    changes only the rounding of the sum; no random number is drawn. Several processes share the batches, and add up in
    one process's order.

    Args:
        model: A causal language model; it is put into evaluation mode and left in the mode it had.
        sequences: At least one.
        build: The batch layout.
        batch_size: Sequences in one forward pass.
        pad_id: Any valid token id.
        lower: Whether the lower layers run.
        processes: Those that share the work, with the same weights; each gets the result.
    """
    device = next(model.parameters()).device
    longest: dict[str | None, int] = {}
    for sequence in sequences:
        if sequence.group is not None:
            longest[sequence.group] = max(longest.get(sequence.group, 0), len(sequence.input_ids))

    def place(sequence: Encoded) -> tuple[int, str, int]:
        length = len(sequence.input_ids)
        return longest.get(sequence.group, length), sequence.group or "", length

    by_length = sorted(sequences, key=place)
    was_training = model.training
    model.eval()
    starts = range(0, len(by_length), batch_size)
    sums, targets = [0.0] * len(starts), [0.0] * len(starts)
    try:
        for index in _turns(len(starts), processes, sharded=has_shards(model)):
            start = starts[index % len(starts)]
            batch = build(by_length[start : start + batch_size], pad_id=pad_id).to(device)
            with lower(batch):
                found = loss_sum(model, batch).item()
            if index < len(starts):
                sums[index], targets[index] = found, batch.targets
    finally:
        model.train(was_training)
    return sum(processes.sum(sums)) / sum(processes.sum(targets))


def _turns(count: int, processes: Processes, *, sharded: bool) -> range:
    """The batches of one process; past the end where it has none, and others need its parts of the weights."""
    if sharded:
        count = -(-count // processes.count) * processes.count
    return range(processes.rank, count, processes.count)
