"""The model as the loop calls it: a batch goes in, its loss comes out, and gradients are averaged over processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from manytune.sharded import has_shards, reshard
from manytune.training.batches import AnyBatch
from manytune.training.distributed.processes import Processes
from manytune.training.speed.chunked_cross_entropy import loss_sum


class LossOfModel(nn.Module):
    """A model and its loss as one module, so that a wrapper around it sees the head's loss, too.

    It has the parameters that train and nothing else: frozen weights and buffers are no wrapper's concern.

    Args:
        model: A model that trains.
        spare: Gives a batch to run where there is none, since each process has to; None if no other waits for that.
    """

    def __init__(self, model: nn.Module, spare: Callable[[], AnyBatch] | None = None) -> None:
        super().__init__()
        self.trained = nn.ParameterList(p for p in model.parameters() if p.requires_grad)
        self._model = (model,)  # in a tuple, so that it isn't a part of this module
        self._spare = spare

    def train(self, mode: bool = True) -> Self:
        """Put the model in training mode, or out of it."""
        self._model[0].train(mode)
        return super().train(mode)

    def forward(self, batch: AnyBatch | None) -> Tensor:
        """The sum of the negative log likelihoods of the batch's target tokens, in nats; 0 without a batch."""
        if batch is not None:
            return loss_sum(self._model[0], batch)
        if self._spare is not None:
            return loss_sum(self._model[0], self._spare()) * 0.0
        nothing: Tensor = (
            self.trained[0].flatten()[:1].sum() * 0.0
        )  # there is a backward pass to take part in
        return nothing


def note_on_statistics(model: nn.Module, processes: Processes) -> str | None:
    """A line about a base with batch normalisation, which no division of rows leaves as it is; None for others."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if processes.count == 1 or not any(isinstance(module, kinds) for module in model.modules()):
        return None
    return "batch normalisation takes its statistics from a process's own rows, so the result isn't that of one process"


def loss_module(model: nn.Module, processes: Processes, *, spare: Callable[[], AnyBatch]) -> nn.Module:
    """The model's loss, in torch's DistributedDataParallel if there are several processes and it isn't sharded.

    What a batch doesn't reach, such as an expert without tokens, has no part in the gradients' mean, and no gradient if
    no process reached it.

    Args:
        model: On this process's device.
        processes: Those that train together.
        spare: Gives a batch of any rows.

    Mutates: what trains, which becomes the first process's: drawn or computed on another machine it may differ.
    """
    if has_shards(model):
        reshard(model)
        return LossOfModel(model, spare)
    module = LossOfModel(model)
    if processes.count == 1:
        return module
    processes.share(list(module.trained))
    return DistributedDataParallel(module, init_sync=False, find_unused_parameters=True)
