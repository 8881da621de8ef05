"""DoRA in a mixed batch: with gains g = m / ‖W + s·BA‖, c = g, d = (1 - g) ⊙ b, U = g ⊙ s·B."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manytune.methods.lora.dora import output_norm
from manytune.methods.tuners.terms import Factors, weight_of


def dora_factors(
    module: nn.Module, a: Tensor, b: Tensor, magnitude: Tensor, scaling: float
) -> tuple[Tensor, Factors]:
    """The gains, (out,), and what they do to the layer's own output.

    Args:
        module: The linear layer.
        a: A, (rank, in).
        b: B, (out, rank).
        magnitude: m, (out,).
        scaling: s.
    """
    weight = weight_of(module)
    wide = torch.promote_types(a.dtype, torch.float32)
    delta = (b.to(wide) @ a.to(wide)) * scaling
    gains = magnitude.to(wide) / output_norm(weight, delta, 0).to(wide)
    bias = getattr(module, "bias", None)
    shift = None if bias is None else (1 - gains) * bias.detach()
    return gains, Factors(outputs=gains, shift=shift)
