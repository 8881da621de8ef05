"""The rows of a training, batch by batch, for this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from manytune.data.encoding.encoded import Encoded
from manytune.training.distributed.division import DividedBatches
from manytune.training.distributed.processes import Processes
from manytune.training.loop.rows import TrainingRows
from manytune.training.loop.samplers import PlannedBatchSampler, row_sampler
from manytune.training.recipe import TrainingRecipe
from manytune.training.training_plan import TrainingPlan


class RowDataset(Dataset[tuple[Encoded, ...]]):
    """Rows of encoded sequences as a torch data set."""

    def __init__(self, rows: Sequence[tuple[Encoded, ...]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Encoded, ...]:
        return self.rows[index]


def train_loader(
    rows: TrainingRows,
    plan: TrainingPlan,
    settings: TrainingRecipe,
    *,
    collate: Callable[[Sequence[tuple[Encoded, ...]]], Any],
    device: torch.device,
    pin_memory: bool,
    processes: Processes,
) -> DataLoader[Any]:
    """Rows in the order that the seed decides; the last batch of an epoch may be smaller.

    With a token budget the batches of all epochs come as one pass: epochs needn't have equally many. Of several
    processes each gets its part of every step, which may have no rows.

    Args:
        rows: What is trained on.
        plan: The steps, and the batches if a token budget decides them.
        settings: The recipe's training section.
        collate: Makes a batch of rows.
        device: Where batches are wanted.
        pin_memory: As torch has it.
        processes: Those that train together.
    """
    batches: Sampler[list[int]]
    if plan.batches is not None:
        batches = PlannedBatchSampler(plan.batches)
    else:
        sampler = row_sampler(
            rows.rows,
            batch_size=settings.batch_size,
            seed=settings.seed,
            group_prefixes=settings.group_prefixes,
            mixture=rows.mixture,
            by_length=rows.by_length,
        )
        batches = BatchSampler(sampler, settings.batch_size, drop_last=False)
    if processes.count > 1:
        batches = DividedBatches(
            batches,
            rows.rows,
            accumulation=settings.accumulation,
            layout=plan.layout.used,
            rank=processes.rank,
            processes=processes.count,
        )
    loader: DataLoader[Any] = DataLoader(
        RowDataset(rows.rows), batch_sampler=batches, collate_fn=collate, pin_memory=pin_memory
    )
    # accelerate moves batches and counts epochs. What there is for this process is divided already.
    ready: DataLoader[Any] = prepare_data_loader(
        loader, device, num_processes=1, process_index=0, put_on_device=True
    )
    return ready
