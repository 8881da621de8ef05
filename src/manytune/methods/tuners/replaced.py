"""The terms of values that take the place of the base's parameters: trained biases, norms, and whole layers.

    a bias            d = b' - b
    a linear weight   c = 0, U = W', f = b'
    an embedding      the same, looked up
    a norm            c = γ' / γ, d = β' - c ⊙ β, whatever it normalises by

Whether a norm computes γ ⊙ n + β, or (1 + γ) ⊙ n as Gemma's do, is found by running it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from manytune.methods.tuners.base_layers import BaseLayer, BaseLayers, require_shape
from manytune.methods.tuners.terms import INSTEAD, Factors, Terms, TermsError, Update, joined

#: How far outputs may differ: norms compute in float32 whatever they are given.
_TOLERANCE = 1e-4


@torch.no_grad()
def replaced_terms(base: BaseLayers, values: Mapping[str, Tensor], *, in_place: bool) -> Terms:
    """The terms of a base some of whose parameters have other values.

    Args:
        base: The base.
        values: The values by the parameters' names in the model. They are shared, not copied.
        in_place: Whether they are put into the base's own parameters, so that modules which share a parameter (tied
            embeddings) all change; else only the module that the name says does.

    Raises:
        TermsError: A parameter isn't there, has another shape, or isn't one of the above.
    """
    layers: dict[str, BaseLayer] = {}
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in values.items():
        path, _, own = name.rpartition(".")
        layer = base.at(path)
        parameter = layer.module._parameters.get(own)
        if parameter is None:
            raise TermsError(
                f"the adapter has a value for {name!r}, and {type(layer.module).__name__} has no such parameter. Was "
                "it trained on another base?"
            )
        require_shape(layer.path, own, value, tuple(parameter.shape))
        for holder, called in base.holders(layer, own) if in_place else [(layer, own)]:
            layers[holder.path] = holder
            groups.setdefault(holder.path, {})[called] = value.detach()
    return joined(_terms(layers[path], group) for path, group in groups.items())


def _terms(layer: BaseLayer, values: Mapping[str, Tensor]) -> Terms:
    found: Terms | None = None
    if values.keys() <= {"weight", "bias"}:
        if layer.is_linear:
            found = _linear(layer, values)
        elif isinstance(layer.module, nn.Embedding):
            found = _embedding(layer, values["weight"])
        else:
            found = _norm(layer, values)
    if found is None:
        raise TermsError(
            f"{layer.path}.{min(values)}: the adapter has a trained value for it, and {type(layer.module).__name__} is "
            "neither a linear layer, nor an embedding that looks its inputs up, nor a norm with a factor and a shift "
            f"for each feature, so what the value changes has no terms. {INSTEAD}"
        )
    return found


def _linear(layer: BaseLayer, values: Mapping[str, Tensor]) -> Terms:
    if "weight" not in values:
        return Terms(factors={layer.path: Factors(shift=_difference(values["bias"], layer.value("bias")))})
    weight = values["weight"].t() if isinstance(layer.module, Conv1D) else values["weight"]
    bias = values.get("bias", layer.value("bias"))
    # The base's own may be on another device than the adapter's values.
    return _whole(layer, Update(None, weight, up_bias=None if bias is None else bias.to(weight.device)))


def _embedding(layer: BaseLayer, table: Tensor) -> Terms | None:
    """The table's rows, if they are what the layer gives: some are called with masks, and some renormalise."""
    # Narrow, since the whole of a large table isn't needed, and on a CPU, where an index out of range is an error only.
    probe = torch.randn(len(table), 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.arange(6).view(2, 3) % len(table)
    expected = functional.embedding(ids, probe) * layer.embed_scale
    if not layer.is_embedding or not _computes(layer.module, {"weight": probe}, ids, expected):
        return None
    return _whole(layer, Update(None, table.t(), layer.embed_scale, lookup=True))


def _whole(layer: BaseLayer, update: Update) -> Terms:
    nothing = torch.zeros(update.outputs, dtype=update.up.dtype, device=update.up.device)
    return Terms(updates={layer.path: update}, factors={layer.path: Factors(outputs=nothing)})


def _norm(layer: BaseLayer, values: Mapping[str, Tensor]) -> Terms | None:
    base = {name: value for name in ("weight", "bias") if (value := layer.value(name)) is not None}
    complete = base.keys() == {name for name, p in layer.module._parameters.items() if p is not None}
    if not complete or "weight" not in base or base["weight"].dim() != 1:
        return None
    size = len(base["weight"])
    offset = _offset(layer.module, size, base.keys())
    if offset is None:
        return None
    old = {name: value.to("cpu", torch.float64) for name, value in base.items()}
    new = {**old, **{name: value.to("cpu", torch.float64) for name, value in values.items()}}
    before, after = old["weight"] + offset, new["weight"] + offset
    lost = (before == 0) & (after != 0)
    if lost.any():
        raise TermsError(
            f"{layer.path}.weight: the base's norm multiplies {int(lost.sum())} features by zero and the adapter's "
            f"doesn't, which no factor on what the base's gives can do. {INSTEAD}"
        )
    gain = torch.where(before == 0, 1.0, after / before)
    shift = new["bias"] - gain * old["bias"] if "bias" in old else torch.zeros(size, dtype=torch.float64)
    x = _probe(size, seed=2)
    given = _call(layer.module, old, x)
    if given is None or not _computes(layer.module, new, x, gain * given + shift):
        return None
    like = values[min(values)]
    wide = torch.promote_types(like.dtype, torch.float32)
    return Terms(
        factors={
            layer.path: Factors(
                outputs=gain.to(like.device, wide) if "weight" in values else None,
                shift=shift.to(like.device, wide) if "bias" in old else None,
            )
        }
    )


def _offset(module: nn.Module, size: int, names: Collection[str]) -> float | None:
    """What a norm adds to its weight before it multiplies by it: 0, or 1; None if it is no norm.

    The probe has weights of its own, since the base's and the adapter's may be too alike to tell.
    """
    generator = torch.Generator().manual_seed(0)
    first, second = (
        {name: 0.5 + torch.rand(size, generator=generator, dtype=torch.float64) for name in names}
        for _ in range(2)
    )
    # More dimensions than two, so that a norm of channels isn't taken for one of features.
    x = _probe(size, seed=1)
    for offset in (0.0, 1.0):
        gain = (second["weight"] + offset) / (first["weight"] + offset)
        shift = second["bias"] - gain * first["bias"] if "bias" in names else 0.0
        given = _call(module, first, x)
        if given is not None and _computes(module, second, x, gain * given + shift):
            return offset
    return None


def _probe(size: int, *, seed: int) -> Tensor:
    return torch.randn(2, 3, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _call(module: nn.Module, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor | None:
    """What a module with these parameters gives for x, on a CPU; None if it isn't made for x."""
    if module._modules:
        return None
    # A copy with parameters of its own: the module itself may be running in another thread.
    twin = copy.copy(module)
    buffers = {name: None if b is None else b.to("cpu", copy=True) for name, b in module._buffers.items()}
    twin.__dict__.update(_parameters={**module._parameters, **parameters}, _buffers=buffers)
    try:
        given = type(module).forward(twin, x)
    except Exception:  # whatever a module of someone else's raises
        return None
    return given if isinstance(given, Tensor) else None


def _computes(module: nn.Module, parameters: Mapping[str, Tensor], x: Tensor, expected: Tensor) -> bool:
    """Whether a module with these parameters gives what is expected of it."""
    given = _call(module, parameters, x)
    if given is None or given.shape != expected.shape:
        return False
    return torch.allclose(given.to(expected.dtype), expected, rtol=_TOLERANCE, atol=_TOLERANCE)


def _difference(value: Tensor, base: Tensor | None) -> Tensor:
    assert base is not None
    wide = torch.promote_types(value.dtype, torch.float32)
    return value.to(wide) - base.to(value.device, wide)
