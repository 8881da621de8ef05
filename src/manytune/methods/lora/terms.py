"""LoRA's terms: D = A, U = s · B, f = s · the bias of B.

With DoRA, gains g = m / ‖W + s·BA‖ multiply the whole layer but its bias: c = g, d = (1 - g) ⊙ b, U = g ⊙ s·B. An
adapter that has taken s₀·B₀A₀ out of the base's weight, as PiSSA's do, has U = [s·B, -s₀·B₀] and D = [A; A₀].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from manytune.methods.lora.dora import output_norm
from manytune.methods.tuners.base_layers import BaseLayer
from manytune.methods.tuners.terms import INSTEAD, Factors, Terms, TermsError, Update

A, B, BIAS = "lora_A.weight", "lora_B.weight", "lora_B.bias"
EMBEDDING_A, EMBEDDING_B = "lora_embedding_A", "lora_embedding_B"
MAGNITUDE = "lora_magnitude_vector"


def lora_terms(
    base: BaseLayer,
    tensors: Mapping[str, Tensor],
    rank: int,
    scaling: float,
    start: tuple[Tensor, Tensor] | None = None,
) -> Terms:
    """One adapter's terms at one layer.

    Args:
        base: The layer.
        tensors: The adapter's, by their names in `LoraLayer.tensors`.
        rank: r.
        scaling: s.
        start: A₀, (r, in), and s₀·B₀, (out, r), if the adapter has taken their product out of W.

    Raises:
        TermsError: The layer is neither linear nor an embedding, or a tensor doesn't fit it.
    """
    lookup = base.is_embedding
    if not lookup:
        base.require_linear()
    names = (EMBEDDING_A, EMBEDDING_B) if lookup else (A, B)
    base.require_tensors(tensors, names, (MAGNITUDE,) if lookup else (BIAS, MAGNITUDE))
    a, b = (tensors[name] for name in names)
    base.require_shape(names[0], a, (rank, base.inputs))
    base.require_shape(names[1], b, (base.outputs, rank))
    if BIAS in tensors:
        base.require_shape(BIAS, tensors[BIAS], (base.outputs,))
    if start is not None:
        with torch.no_grad():
            a, b, scaling = torch.cat((a, start[0])), torch.cat((scaling * b, -start[1]), dim=1), 1.0
    factors = {}
    if MAGNITUDE in tensors:
        if BIAS in tensors:
            raise TermsError(f"{base.path}: a bias in B doesn't go with DoRA's magnitudes. {INSTEAD}")
        gains = _gains(base, a, b, tensors[MAGNITUDE].flatten(), scaling)
        bias = base.value("bias")
        shift = None if bias is None else (1 - gains) * bias.to(gains.device)
        factors[base.path] = Factors(outputs=gains, shift=shift)
        b = gains[:, None] * b.detach()
    update = Update(
        a, b, scaling * (base.embed_scale if lookup else 1.0), up_bias=tensors.get(BIAS), lookup=lookup
    )
    return Terms(updates={base.path: update}, factors=factors)


@torch.no_grad()
def _gains(base: BaseLayer, a: Tensor, b: Tensor, magnitude: Tensor, scaling: float) -> Tensor:
    """DoRA's g, (out,), where the adapter's tensors are; the base's weight may be elsewhere, and is not moved."""
    base.require_shape(MAGNITUDE, magnitude, (base.outputs,))
    wide, weight = torch.promote_types(a.dtype, torch.float32), base.weight
    delta = (b.to(weight.device, wide) @ a.to(weight.device, wide)) * scaling
    return magnitude.to(wide) / output_norm(weight, delta, 0).to(magnitude.device, wide)
