"""The FLOP/s that this machine reaches in matrix products of a model's own shapes: the denominator of MFU."""

from __future__ import annotations

import time
from collections import Counter

import torch
from torch import Tensor, nn

from manytune.kernels.products import product
from manytune.methods.tuners.base_layers import linear_sizes
from manytune.methods.tuners.quantized_layers import dequantized_weight, quantization_backend
from manytune.sharded import is_sharded
from manytune.training.speed.required_flops import matrices

# Fewer rows measure the call more than the product; more take long on a large head.
_FEWEST_ROWS, _MOST_ROWS = 64, 512
_NARROWEST = 64  # an adapter's matrices are narrower, and no measure of anything


@torch.no_grad()
def matmul_flops_per_second(
    model: nn.Module, *, rows: int, seconds: float = 1.0, dtype: torch.dtype | None = None
) -> float:
    """Multiply with the model's own matrices for a while, and draw no random number.

    Measured are the two products that a frozen layer needs: of its input with the weight, and of the output's gradient
    with it. Shapes count as often as the model has them.

    Args:
        model: On the device that is measured. Its weights are only read.
        rows: Rows of the inputs: tokens of a typical batch.
        seconds: How long to measure, after one round that isn't.
        dtype: That of the products; None for each weight's own.

    Returns:
        FLOP/s, the mean over that time: on a shared machine it is the mean that a training gets.
    """
    shapes: Counter[tuple[int, ...]] = Counter()
    chosen: dict[tuple[int, ...], Tensor] = {}
    for module in matrices(model):
        weight = module.weight
        packed = quantization_backend(module)
        shape = linear_sizes(module)[::-1] if packed else tuple(weight.shape)
        if min(shape) >= _NARROWEST or not chosen:
            shapes[shape] += 1
            if shape not in chosen:
                if is_sharded(weight):  # this process has a part of it
                    weight = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
                weight = dequantized_weight(module) if packed else weight
                chosen[shape] = weight if dtype is None else weight.to(dtype)
    rows = min(max(rows, _FEWEST_ROWS), _MOST_ROWS)
    pairs = [
        (shapes[shape], weight, weight.new_ones(rows, shape[1]), weight.new_ones(rows, shape[0]))
        for shape, weight in chosen.items()
    ]
    spent = dict.fromkeys(chosen, 0.0)
    rounds = -1
    started = time.perf_counter()
    while rounds < 1 or time.perf_counter() - started < seconds:
        for shape, (_, weight, inputs, gradients) in zip(chosen, pairs, strict=True):
            before = time.perf_counter()
            product(inputs, weight)
            product(gradients, weight.T)
            if weight.is_cuda:
                torch.cuda.synchronize()
            spent[shape] += time.perf_counter() - before if rounds >= 0 else 0.0
        rounds += 1
    flops = sum(4 * rows * weight.numel() * count for count, weight, _, _ in pairs)
    return flops * rounds / sum(shapes[shape] * spent[shape] for shape in chosen)
