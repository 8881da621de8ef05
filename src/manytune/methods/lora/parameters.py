"""LoRA on parameters that no linear layer holds, such as the weights of grouped experts: `target_parameters`.

    W' = W + s · B A                     for a matrix W (out × in)
    W'[e] = W[e] + s · B[e] A[e]         for weights W (experts × out × in) of several experts

The layer that holds the parameter runs with W' in its place, whatever it computes with it. Grouped experts as
transformers has them are computed with the update next to the weight instead, where dropout D on the way into A is
possible, too (`tuners/grouped_experts.py`):

    W[e] x + s · B[e] A[e] D(x)

Shapes: A is one matrix (experts · r × in), expert by expert; B is (out × r · experts), in which the experts of one
direction are next to each other. Both are HF PEFT's, as are the wrappers around a layer that holds several targeted
parameters: each adapts one of them, and lies in the one before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from manytune.errors import AdapterError, ConfigError
from manytune.methods.lora.config import LoraConfig
from manytune.methods.lora.factor import Factor, draw_fresh, skip_draws
from manytune.methods.lora.init import initialise, refuse_beyond_linear
from manytune.methods.lora.layer import LoraLayer
from manytune.methods.lora.parameter_terms import by_expert, terms_at
from manytune.methods.tuners.base_layers import AsksBase, BaseLayer
from manytune.methods.tuners.grouped_experts import (
    Routing,
    each_expert,
    experts_forward,
    follows_interface,
    is_hooked,
)
from manytune.methods.tuners.terms import Terms

#: Where a wrapper lies in the one around it.
WITHIN = ".base_layer"


def holder(path: str) -> str:
    """The path of the layer that wrappers at this path are around."""
    while path.endswith(WITHIN):
        path = path.removesuffix(WITHIN)
    return path


class _LowRank(NamedTuple):
    """One adapter's part at one parameter of grouped experts.

    Attributes:
        a: (experts, r, in).
        b: (experts, out, r).
        scaling: s.
        dropout: D.
    """

    a: Tensor
    b: Tensor
    scaling: float
    dropout: nn.Module


class ParamWrapper(AsksBase, LoraLayer):
    """A layer of which one parameter is adapted.

    Args:
        base_layer: The layer, or another wrapper of this kind around it.
        parameter_name: The parameter's name in the layer; it has two dimensions, or three of which the first counts
            experts.

    Raises:
        ConfigError: The parameter has another shape, or is packed.
    """

    row_wise: ClassVar[bool] = False
    parameter_name: str

    def __init__(self, base_layer: nn.Module, parameter_name: str) -> None:
        super().__init__(base_layer)
        self.parameter_name = parameter_name
        self.weight_name = parameter_name  # type: ignore[misc]
        shape = self.weight.shape
        if len(shape) not in (2, 3) or not self.weight.is_floating_point():
            raise ConfigError(
                f"target_parameters: {parameter_name} of {type(self.get_base_layer()).__name__} has shape "
                f"{tuple(shape)} and dtype {self.weight.dtype}; expected a matrix, or one for each expert, of "
                "floating-point numbers."
            )
        self.num_experts = shape[0] if len(shape) == 3 else 1
        # As (experts, in, out); most models store (experts, out, in).
        self.kept_transposed = len(shape) == 3 and bool(
            getattr(self.get_base_layer(), "is_transposed", False)
        )
        out, inputs = (shape[-1], shape[-2]) if self.kept_transposed else (shape[-2], shape[-1])
        self.in_features, self.out_features = int(inputs), int(out)

    # -- the layer within

    def get_base_layer(self) -> nn.Module:
        """The base's own layer, which may lie within several of these wrappers."""
        inner = self.base_layer
        while isinstance(inner, ParamWrapper):
            inner = inner.base_layer
        return inner

    def get_parameter(self, target: str) -> nn.Parameter:
        """A parameter by its path; a plain name is one of the base's layer."""
        if "." in target:
            return super().get_parameter(target)
        return self.get_base_layer().get_parameter(target)

    @property
    def weight(self) -> Tensor:
        """The parameter, with the merged adapters in it."""
        return self.get_base_layer().get_parameter(self.parameter_name)

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias; None if it has none."""
        bias = self.get_base_layer()._parameters.get("bias")
        return bias

    def nested(self) -> Iterator[ParamWrapper]:
        """This wrapper and those that lie in it."""
        layer: nn.Module = self
        while isinstance(layer, ParamWrapper):
            yield layer
            layer = layer.base_layer

    # -- adapters

    def make_factors(self, adapter_name: str, config: LoraConfig) -> None:
        """A (experts · r × in) and B (out × r · experts) as linear modules without bias."""
        called_alike = follows_interface(self.get_base_layer(), [self.parameter_name])
        for option in ("lora_bias", "use_dora", *(() if called_alike else ("lora_dropout",))):
            if getattr(config, option):
                raise ConfigError(
                    f"{option}={getattr(config, option)!r} is not supported for {self._named}: the update is added to "
                    f"the weight, before it meets an input. Leave {option} at its default, or leave the parameter out "
                    "of target_parameters (with 'all-linear': list the linear layers in target_modules instead)."
                )
        refuse_beyond_linear(config.init_lora_weights, self._named)
        r = self.r[adapter_name]
        a = Factor(self.in_features, r * self.num_experts, bias=False, training=self.training)
        b = Factor(r * self.num_experts, self.out_features, bias=False, training=self.training)
        self.lora_A[adapter_name], self.lora_B[adapter_name] = a, b
        if config.init_lora_weights is False:
            for factor in (a, b):
                draw_fresh(factor)
        else:
            skip_draws(a, b)
        initialise(a, b, r=r, init=config.init_lora_weights)

    @property
    def _named(self) -> str:
        return f"{type(self.get_base_layer()).__name__}.{self.parameter_name}"

    def of_experts(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """A as (experts, r, in) and B as (experts, out, r); views."""
        a, b = (factor[adapter_name].get_parameter("weight") for factor in (self.lora_A, self.lora_B))
        return by_expert(a, b, self.num_experts)

    def factors(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """Two tensors whose (batched) product is BA in the parameter's shape; views of B and A."""
        right, left = self.of_experts(adapter_name)
        if self.kept_transposed:
            left, right = right.transpose(1, 2), left.transpose(1, 2)
        return (left, right) if self.weight.dim() == 3 else (left[0], right[0])

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """ΔW = s · BA, in the parameter's shape."""
        left, right = self.factors(adapter_name)
        wide = torch.promote_types(left.dtype, torch.float32)
        return (left.to(wide) @ right.to(wide)) * self.scaling[adapter_name]

    def merged_tensors(self, adapter_names: Sequence[str]) -> dict[str, Tensor]:
        """W + Σ s·BA, summed in float32 at least and rounded once."""
        weight = self.origin(adapter_names)
        total = weight.to(_wide(weight.dtype, torch.float32), copy=True)
        for name in adapter_names:
            total += self.get_delta_weight(name)
        return {self.parameter_name: rounded(total, weight.dtype)}

    # -- running

    def adapted_weight(self) -> Tensor:
        """W' = W + Σ s · BA over the active adapters, of which there is one at least; rounded once to W's dtype."""
        names = self.live_adapters()
        if any(
            drop.training and isinstance(drop, nn.Dropout)
            for drop in map(self.lora_dropout.__getitem__, names)
        ):
            raise AdapterError(
                f"{self._named} has hooks, so it is run with the update in its weight, where lora_dropout has no "
                "place. Remove the hooks, or train with lora_dropout=0."
            )
        weight = self.weight
        left, right = self.factors(names[0])
        scaling = self.scaling[names[0]]
        if len(names) > 1:
            # Several adapters are one of the summed rank.
            pairs = [(*self.factors(name), self.scaling[name]) for name in names]
            left = torch.cat([own * factor for own, _, factor in pairs], dim=-1)
            right, scaling = torch.cat([own for _, own, _ in pairs], dim=-2), 1.0
        wide = _wide(weight.dtype, left.dtype)
        add = torch.baddbmm if weight.dim() == 3 else torch.addmm
        # Autocast would take the sum, which becomes a weight, for a product of activations.
        with torch.autocast(weight.device.type, enabled=False):
            total = add(weight.to(wide), left.to(wide), right.to(wide), alpha=scaling)
        return rounded(total, weight.dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer with W' in place of each targeted parameter; exactly the base layer if no adapter is active.

        Args:
            *args: Passed to the layer.
            **kwargs: Passed to the layer.

        Returns:
            What the layer gives.
        """
        base = self.get_base_layer()
        live = [layer for layer in self.nested() if layer.live_adapters()]
        if not live:
            return base(*args, **kwargs)
        if follows_interface(base, [layer.parameter_name for layer in live]) and not is_hooked(base):
            updates = {layer.parameter_name: layer._updates() for layer in live}
            return experts_forward(base, partial(_with_updates, updates), *args, **kwargs)
        return functional_call(
            base, {layer.parameter_name: layer.adapted_weight() for layer in live}, args, kwargs
        )

    def _updates(self) -> list[_LowRank]:
        return [
            _LowRank(*self.of_experts(name), self.scaling[name], self.lora_dropout[name])
            for name in self.live_adapters()
        ]

    # -- terms

    def live_terms(self, base: BaseLayer, adapter_name: str, config: LoraConfig) -> Terms:
        """See `AdapterLayer.live_terms`."""
        tensors = {name: parameter.detach() for name, parameter in self.tensors(adapter_name).items()}
        base = replace(base, path=holder(base.path), module=self.get_base_layer())
        rank, scaling = self.r[adapter_name], self.scaling[adapter_name]
        return terms_at(base, self.parameter_name, tensors, rank, scaling)

    def extra_repr(self) -> str:
        """The parameter's name, which alone tells apart the wrappers around one layer."""
        return f"parameter_name={self.parameter_name!r}"


def _with_updates(
    updates: Mapping[str, Sequence[_LowRank]], name: str, x: Tensor, y: Tensor, routing: Routing
) -> Tensor:
    for one in updates.get(name, ()):
        low = each_expert(one.dropout(x.to(one.a.dtype)), one.a.transpose(1, 2), routing.sizes)
        y = (y + each_expert(low, one.b.transpose(1, 2), routing.sizes) * one.scaling).to(y.dtype)
    return y


def _wide(weight: torch.dtype, factors: torch.dtype) -> torch.dtype:
    """The dtype to add in; one of eight bits is promoted to none other by torch."""
    return torch.promote_types(torch.float32 if weight.itemsize == 1 else weight, factors)


def rounded(total: Tensor, dtype: torch.dtype) -> Tensor:
    """A sum in a dtype; one of eight bits has no infinity to overflow to, so there it ends at the largest number."""
    if dtype.itemsize == 1:
        limits = torch.finfo(dtype)
        total = total.clamp(limits.min, limits.max)
    return total.to(dtype)
