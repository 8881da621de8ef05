"""Arithmetic of adapters: the kinds of weighted combinations, the negation of one adapter included.

A LoRA adapter adds ΔW = s·BA. Combinations work on these deltas, exactly (`cat`) or as well as a rank allows (the
`svd` kinds), or on the factors A and B themselves (`linear`, `ties`, `dare_*`, `magnitude_prune`), which leaves cross
terms. Task arithmetic is due to Ilharco et al., arXiv 2212.04089.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from manytune.errors import ConfigError
from manytune.methods.arithmetic.pruning import agreeing_mean, at_random, largest, weighted_sum

#: By kind, less `_svd`: how values are dropped, and whether signs are elected.
_KINDS = {
    "svd": (None, False),
    "linear": (None, False),
    "cat": (None, False),
    "ties": (largest, True),
    "dare_linear": (at_random, False),
    "dare_ties": (at_random, True),
    "magnitude_prune": (largest, False),
}
COMBINATIONS = (*_KINDS, "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")


@dataclass(frozen=True)
class Combination:
    """How to combine.

    Attributes:
        kind: One of `COMBINATIONS`.
        svd_rank: The rank to cut the `svd` kinds to; by default the largest of the adapters'.
        svd_clamp: Cut the factors at this quantile of their values, against outliers.
        svd_full_matrices: Compute the whole of U and V, as HF PEFT does by default; the result is the same.
        svd_driver: The algorithm, for CUDA tensors; see `torch.linalg.svd`.
        density: The share of values that pruning kinds keep, above 0 and at most 1.
        sign: How TIES elects signs, `"total"` or `"frequency"`.

    Raises:
        ConfigError: An option can't be used.
    """

    kind: str = "svd"
    svd_rank: int | None = None
    svd_clamp: float | None = None
    svd_full_matrices: bool = True
    svd_driver: str | None = None
    density: float | None = None
    sign: str = "total"

    def __post_init__(self) -> None:
        if self.kind not in COMBINATIONS:
            raise ConfigError(f"Invalid combination_type: {self.kind}. Known: {', '.join(COMBINATIONS)}.")
        if self.prunes and (self.density is None or not 0 < self.density <= 1):
            raise ConfigError(
                f"combination_type={self.kind!r} keeps a share of the values: expected density above 0 and at most 1, "
                f"found {self.density!r}."
            )
        if self.sign not in ("total", "frequency"):
            raise ConfigError(f"majority_sign_method: expected 'total' or 'frequency', found {self.sign!r}.")

    @property
    def on_deltas(self) -> bool:
        """Whether ΔW is combined and then factored again."""
        return self.kind.endswith("svd")

    @property
    def prunes(self) -> bool:
        """Whether values are dropped."""
        return _KINDS[self.kind.removesuffix("_svd")][0] is not None

    def __call__(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Combine one tensor of each adapter."""
        prune, elects = _KINDS[self.kind.removesuffix("_svd")]
        if prune is not None:
            assert self.density is not None
            tensors = [prune(tensor, self.density) for tensor in tensors]
        return agreeing_mean(tensors, weights, self.sign) if elects else weighted_sum(tensors, weights)
