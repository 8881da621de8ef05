"""How fast this machine multiplies matrices at the demo model's shapes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

# Rows by columns in and out of SmolLM2-135M's linear layers, with the tokens of a small batch as rows: the two
# projections of the feed-forward part, which hold three quarters of the weights, and attention's.
_TOKENS = 512
_SHAPES = ((576, 1536), (1536, 576), (576, 576))


@dataclass(frozen=True)
class Machine:
    """What was measured.

    Attributes:
        gflops: Float32 matrix products, in 10^9 floating-point operations a second.
        threads: Threads that PyTorch computes with.
        device: Where it was measured, such as "cpu" or "cuda".
    """

    gflops: float
    threads: int
    device: str


def measure(*, seconds: float = 3.0, device: str | None = None) -> Machine:
    """Multiply matrices of the model's shapes for a while.

    The result is the mean and not the best: on a shared machine it is the mean that the next minutes resemble.

    Args:
        seconds: How long to measure, after one unmeasured round.
        device: Where; None is a GPU if PyTorch sees one, else the CPU.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    pairs = [
        (torch.rand(_TOKENS, width, device=device), torch.rand(width, out, device=device))
        for width, out in _SHAPES
    ]
    operations = sum(2 * left.shape[0] * left.shape[1] * right.shape[1] for left, right in pairs)
    _multiply(pairs, device)
    rounds = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or rounds == 0:
        _multiply(pairs, device)
        rounds += 1
    elapsed = time.perf_counter() - started
    return Machine(operations * rounds / elapsed / 1e9, torch.get_num_threads(), device)


def _multiply(pairs: list[tuple[torch.Tensor, torch.Tensor]], device: str) -> None:
    for left, right in pairs:
        left @ right
    if device == "cuda":
        torch.cuda.synchronize()
