"""The terms of LoRA on one parameter (`target_parameters`), from A and B as files have them.

At routers and grouped experts D = A and U = B, expert by expert. The weight of a linear layer or of an embedding may be
named, too; then BA is added to the weight as the layer keeps it, so that D and U are those of a layer that is targeted
as a module, or their transposes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from manytune.methods.lora.terms import A, B
from manytune.methods.tuners.base_layers import BaseLayer
from manytune.methods.tuners.grouped_experts import follows_interface, is_router
from manytune.methods.tuners.terms import INSTEAD, ParameterUpdate, Terms, TermsError, Update


def by_expert(a: Tensor, b: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """A, (experts · r, in), and B, (out, r · experts), as (experts, r, in) and (experts, out, r); views."""
    return a.view(experts, -1, a.shape[1]), b.view(len(b), -1, experts).permute(2, 0, 1)


def together(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `by_expert`: A as (experts · r, in) and B as (out, r · experts)."""
    return a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)


def terms_at(base: BaseLayer, name: str, tensors: Mapping[str, Tensor], rank: int, scaling: float) -> Terms:
    """One adapter's terms at one parameter.

    Args:
        base: The layer that holds it.
        name: Its name there.
        tensors: The adapter's, by their names in `LoraLayer.tensors`.
        rank: r.
        scaling: s.

    Raises:
        TermsError: The layer isn't known to read each token by itself, or a tensor doesn't fit it.
    """
    base.require_tensors(tensors, (A, B))
    a, b = tensors[A], tensors[B]
    shape, module = tuple(base.module.get_parameter(name).shape), base.module
    experts = shape[0] if len(shape) == 3 else 1
    outputs, inputs = shape[-2:]
    if len(shape) == 3 and getattr(module, "is_transposed", False):
        outputs, inputs = inputs, outputs
    base.require_shape(f"{A} for {name}", a, (experts * rank, inputs))
    base.require_shape(f"{B} for {name}", b, (outputs, rank * experts))
    if len(shape) == 3 and follows_interface(module, [name]):
        return Terms(parameters={f"{base.path}.{name}": ParameterUpdate(*by_expert(a, b, experts), scaling)})
    if len(shape) == 2 and name == "weight":
        if is_router(module):
            return Terms(parameters={f"{base.path}.{name}": ParameterUpdate(a, b, scaling)})
        if base.is_embedding:
            update = Update(b.t(), a.t(), scaling * base.embed_scale, lookup=True)
            return Terms(updates={base.path: update})
        if base.is_linear:
            kept_transposed = isinstance(module, Conv1D)
            down, up = (b.t(), a.t()) if kept_transposed else (a, b)
            return Terms(updates={base.path: Update(down, up, scaling)})
    raise _no_terms(base, name)


def _no_terms(base: BaseLayer, name: str) -> TermsError:
    module: nn.Module = base.module
    return TermsError(
        f"target_parameters: the adapter adapts {base.path}.{name} ({type(module).__name__}). That isn't a router, a "
        "linear layer or an embedding, nor experts as transformers groups them, so whether the layer reads each token "
        f"by itself isn't known, and what LoRA does there has no terms. {INSTEAD}"
    )
