"""How much of its rank a trained LoRA uses, from its factors alone."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from manytune.evaluation.ranks import Spectrum
from manytune.methods.checkpoint.format import read_tensors

_ENERGY = 0.9


def spectrum_of(adapter: Path) -> Spectrum | None:
    """The spectrum of every change B·A that an adapter makes, on average.

    Args:
        adapter: A LoRA adapter's directory.

    Returns:
        None if it has no pair of factors.
    """
    tensors = read_tensors(adapter)
    by_module: dict[str, list[float]] = {}
    directions = []
    for name, a in tensors.items():
        path, found, rest = name.partition(".lora_A.")
        b = tensors.get(f"{path}.lora_B.{rest}")
        if not found or b is None or a.ndim != 2 or b.ndim != 2:
            continue
        values = singular_values(a, b)
        by_module.setdefault(path.rpartition(".")[2], []).append(effective_rank(values))
        directions.append(directions_holding(values, _ENERGY))
    if not directions:
        return None
    return Spectrum(
        effective_rank=mean(value for values in by_module.values() for value in values),
        directions=mean(directions),
        by_module={module: mean(values) for module, values in sorted(by_module.items())},
    )


def singular_values(a: Tensor, b: Tensor) -> Tensor:
    """The singular values of B·A that may not be zero, without forming it; at most r.

    With the thin factorisations `B = Q₁R₁` and `Aᵀ = Q₂R₂`, `BA = Q₁ (R₁ R₂ᵀ) Q₂ᵀ`, and the Qs change no singular
    value: those of the small middle matrix are all that there are.

    Args:
        a: `(r, in)`.
        b: `(out, r)`.
    """
    _, r_b = torch.linalg.qr(b.double())
    _, r_a = torch.linalg.qr(a.double().T)
    values: Tensor = torch.linalg.svdvals(r_b @ r_a.T)
    return values


def effective_rank(values: Tensor) -> float:
    """`exp(-sum p log p)` with `p` the values' shares in their sum (Roy and Vetterli 2007); 0 if all are zero."""
    total = values.sum()
    if total == 0:
        return 0.0
    shares = values / total
    return float(torch.exp(torch.special.entr(shares).sum()))


def directions_holding(values: Tensor, energy: float) -> int:
    """How many of the largest values have this share of the sum of squares; 0 if all are zero."""
    squares = values.sort(descending=True).values ** 2
    if squares.sum() == 0:
        return 0
    reached = squares.cumsum(0) / squares.sum()
    return int((reached < energy).sum()) + 1
