"""The model as the loop calls it: a batch goes in, its loss comes out, and gradients are averaged over processes."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from manytune.training.batches import AnyBatch
from manytune.training.distributed.processes import Processes
from manytune.training.speed.chunked_cross_entropy import loss_sum


class LossOfModel(nn.Module):
    """A model and its loss as one module, so that a wrapper around it sees the head's loss, too.

    Args:
        model: A model that trains.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: AnyBatch | None) -> Tensor:
        """The sum of the negative log likelihoods of the batch's target tokens, in nats; 0 without a batch."""
        if batch is not None:
            return loss_sum(self.model, batch)
        trained = next(parameter for parameter in self.model.parameters() if parameter.requires_grad)
        return (
            trained.flatten()[:1].sum() * 0.0
        )  # of the graph, so that there is a backward pass to take part in


def loss_module(model: nn.Module, processes: Processes) -> nn.Module:
    """The model's loss, in torch's DistributedDataParallel if there are several processes.

    Frozen weights are neither compared nor exchanged. What a batch doesn't reach, such as an expert without tokens, has
    no part in the gradients' sum, and no gradient if no process reached it.

    Args:
        model: On this process's device.
        processes: Those that train together.

    Mutates: what trains, which becomes the first process's: drawn or computed on another machine it may differ.
    """
    module = LossOfModel(model)
    if processes.count == 1:
        return module
    processes.share([parameter for parameter in model.parameters() if parameter.requires_grad])
    return DistributedDataParallel(
        module, init_sync=False, broadcast_buffers=False, find_unused_parameters=True
    )
