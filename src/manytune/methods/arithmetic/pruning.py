"""Combining task vectors: weighted sums, TIES and DARE, on plain tensors.

    TIES  drop all but the largest values, elect a sign for each value, average those that agree with it
          (Yadav et al., arXiv 2306.01708)
    DARE  drop values at random and scale up the rest, so that the expectation stays (Yu et al., arXiv 2311.03099)

Tensors here are one for each task, all of one shape, and weights one number for each task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Prune = Callable[[Tensor, float], Tensor]


def largest(tensor: Tensor, density: float) -> Tensor:
    """The share `density` of the values that are largest in magnitude; the others become zero."""
    kept = tensor.abs().flatten().topk(int(density * tensor.numel())).indices
    mask = torch.zeros(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
    mask[kept] = 1
    return tensor * mask.view(tensor.shape)


def at_random(tensor: Tensor, density: float) -> Tensor:
    """Each value with probability `density`, divided by it; zero otherwise."""
    kept = torch.bernoulli(torch.full_like(tensor, density))
    return tensor * kept / density


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ wᵢ tᵢ."""
    return torch.stack([weight * tensor for weight, tensor in zip(weights, tensors, strict=True)]).sum(0)


def agreeing_mean(tensors: Sequence[Tensor], weights: Sequence[float], sign: str) -> Tensor:
    """For each value, the mean over the tasks that have the elected sign there.

    Args:
        tensors: The task vectors, pruned.
        weights: Multiplied in after the election, as HF PEFT does it.
        sign: How to elect: `"total"` takes the sign of the sum, `"frequency"` the sign that more tasks have. Zero
            counts as positive.
    """
    stack = torch.stack(list(tensors))
    votes = (stack if sign == "total" else stack.sign()).sum(0)
    agrees = stack.sign() == torch.where(votes >= 0, 1, -1)
    return weighted_sum(list(stack * agrees), weights) / agrees.sum(0).clamp(min=1)
