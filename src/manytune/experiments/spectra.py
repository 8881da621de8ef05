"""How much of its rank a trained adapter uses, from its low-rank updates alone."""

from __future__ import annotations

from statistics import mean

import torch
from torch import Tensor

from manytune.evaluation.ranks import Spectrum
from manytune.methods.tuners.terms import Terms

_ENERGY = 0.9


def spectrum_of(terms: Terms) -> Spectrum | None:
    """The spectrum of every update U·D of a weight that an adapter makes, on average.

    Args:
        terms: What the adapter does.

    Returns:
        None if it makes no such update.
    """
    by_module: dict[str, list[float]] = {}
    directions = []
    pairs = [
        (path, update.down, update.up)
        for path, update in terms.updates.items()
        if update.down is not None and terms.activation is None
    ]
    for path, of_experts in terms.parameters.items():
        down, up = (factor.reshape(-1, *factor.shape[-2:]) for factor in (of_experts.down, of_experts.up))
        pairs += [(path.removesuffix(".weight"), *each) for each in zip(down, up, strict=True)]
    for path, a, b in pairs:
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
    """The singular values of BA that may not be zero, without forming it; at most r.

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
