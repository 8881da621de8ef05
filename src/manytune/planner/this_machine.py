"""The machine that this runs on, as hardware: products of the model's own shapes, and copies of memory, are timed."""

from __future__ import annotations

import time

from manytune.methods.tuners.sizes import Matrix
from manytune.planner.architecture import Architecture
from manytune.planner.hardware import GIB, Hardware, Products

_ROWS = 256
_COPIED = 1 << 26  # numbers: larger than any cache
_ROUNDS = 5
# More would take long to fill with numbers; one block has the same shapes.
_MOST_WEIGHTS = 1 << 30


def measure_this_machine(model: Architecture, dtype: Products, *, seconds: float = 2.0) -> Hardware:
    """Measure FLOP/s and bandwidth. Imports torch.

    Args:
        model: The products are those of one of its blocks.
        dtype: Theirs.
        seconds: How long to multiply.
    """
    import torch
    from torch import nn

    from manytune.free_memory import free_memory
    from manytune.training.speed.measured_flops import matmul_flops_per_second

    kind = getattr(torch, dtype)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    chosen: list[Matrix] = []
    weights = 0
    for matrix in model.matrices:
        if not chosen or weights + matrix.weights <= _MOST_WEIGHTS:
            chosen.append(matrix)
            weights += matrix.weights
    block = nn.ModuleList(
        nn.Linear(matrix.inputs, matrix.outputs, bias=False, device=device, dtype=kind) for matrix in chosen
    )
    flops = matmul_flops_per_second(block, rows=_ROWS, seconds=seconds)
    numbers, copy = (torch.ones(_COPIED, device=device) for _ in range(2))
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        copy.copy_(numbers)
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    memory = torch.cuda.mem_get_info()[0] if cuda else free_memory() or 0
    return Hardware(
        kind="gpu" if cuda else "cpu",
        memory_gib=max(memory, 1) / GIB,
        bandwidth_gb_s=2 * numbers.nbytes / min(times) / 1e9,
        tflops={dtype: flops / 1e12},
        source=f"measured here, {torch.get_num_threads()} threads",
        measured=True,
    )
