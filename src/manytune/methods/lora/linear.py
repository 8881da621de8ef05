"""LoRA next to a linear layer: `torch.nn.Linear`, or GPT-2's `Conv1D`, which stores its weight transposed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from manytune.kernels.products import is_plain
from manytune.methods.lora.config import LoraConfig
from manytune.methods.lora.factor import Factor, draw_fresh, require_values, skip_draws
from manytune.methods.lora.fused import lora_linear
from manytune.methods.lora.init import factors_of, initialise, starts_from_weight
from manytune.methods.lora.shifted import ShiftedLayer
from manytune.methods.tuners.merged_sum import MergedSum
from manytune.methods.tuners.terms import Update
from manytune.own_dtype import runs_in_own_dtype

_WIDE = (torch.float32, torch.float64)


class Linear(ShiftedLayer):
    """y = x Wᵀ + b + Σ s · D(x) Aᵀ Bᵀ over the active adapters.

    Args:
        base_layer: `torch.nn.Linear`, a class derived from it, or transformers' `Conv1D`.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        if isinstance(base_layer, Conv1D):
            self.in_features, self.out_features = base_layer.weight.shape
            self.fan_in_fan_out = True
            self.output_dim = 1
        else:
            self.in_features: int = base_layer.in_features  # type: ignore[no-redef,assignment]
            self.out_features: int = base_layer.out_features  # type: ignore[no-redef,assignment]
            self.fan_in_fan_out = False

    def make_factors(self, adapter_name: str, config: LoraConfig) -> None:
        """A (r × in) and B (out × r) as linear modules without bias; B has one with `lora_bias`."""
        r = self.r[adapter_name]
        if config.lora_bias:
            self.warn_without_bias()
        a = Factor(self.in_features, r, bias=False, training=self.training)
        b = Factor(r, self.out_features, bias=config.lora_bias, training=self.training)
        self.lora_A[adapter_name], self.lora_B[adapter_name] = a, b
        if config.init_lora_weights is False:
            for factor in (a, b):
                draw_fresh(factor)
        else:
            skip_draws(a, b)
        if starts_from_weight(config.init_lora_weights):
            self._take_over(adapter_name, str(config.init_lora_weights))
        else:
            initialise(a, b, r=r, init=config.init_lora_weights)

    def _take_over(self, adapter_name: str, init: str) -> None:
        weight = self.origin([])
        scaling = self.scaling[adapter_name]
        a, b = factors_of(weight.t() if self.fan_in_fan_out else weight, self.r[adapter_name], scaling, init)
        self.shift_by(adapter_name, a, scaling * b)
        for module, value in ((self.lora_A[adapter_name], a), (self.lora_B[adapter_name], b)):
            parameter = module.get_parameter("weight")
            if not parameter.is_meta:
                parameter.data = value.clone(memory_format=torch.contiguous_format)

    def live_update(self, adapter_name: str) -> Update | None:
        """See `AdapterLayer.live_update`: the usual adapter's."""
        if self._shifts or self.use_dora[adapter_name] or self.lora_bias[adapter_name]:
            return None
        down, up = self._modules["lora_A"], self._modules["lora_B"]
        a: Tensor = down._modules[adapter_name]._parameters["weight"]  # type: ignore[union-attr,assignment]
        b: Tensor = up._modules[adapter_name]._parameters["weight"]  # type: ignore[union-attr,assignment]
        return Update(a.detach(), b.detach(), self.scaling[adapter_name])

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """ΔW = s · BA: (out, in), or (in, out) for `Conv1D`."""
        a = self.lora_A[adapter_name].get_parameter("weight")
        b = self.lora_B[adapter_name].get_parameter("weight")
        wide = torch.promote_types(a.dtype, torch.float32)
        delta = (b.to(wide) @ a.to(wide)) * self.scaling[adapter_name]
        return delta.t() if self.fan_in_fan_out else delta

    def has_adapter(self, adapter_name: str) -> bool:
        """See `AdapterLayer.has_adapter`; at a tenth of its time, which each switch and each call takes."""
        return adapter_name in self._modules["lora_A"]._modules  # type: ignore[union-attr]

    def merged_sum(self, adapter_names: Sequence[str]) -> MergedSum | None:
        """See `AdapterLayer.merged_sum`; PiSSA's adapters shift the weight as well, DoRA's scale it."""
        if type(self) is not Linear or self._shifts:
            return None
        parameter = _weight(self, "base_layer")
        if parameter is None or parameter.dtype not in _WIDE:  # in others the sum is to be rounded once
            return None
        products: list[tuple[Tensor, Tensor, float]] = []
        for name in adapter_names:
            a, b = _weight(self, "lora_A", name), _weight(self, "lora_B", name)
            if a is None or b is None or a.dtype is not parameter.dtype:
                return None
            if self.use_dora[name] or self.lora_bias[name]:
                return None
            left, right = (a.t(), b.t()) if self.fan_in_fan_out else (b, a)
            products.append((left, right, self.scaling[name]))
        return MergedSum("weight", parameter, products)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer with its active adapters; exactly the base layer if there are none.

        Args:
            x: (..., in).
            *args: Passed to the base layer.
            **kwargs: Passed to the base layer.

        Returns:
            (..., out), in the base layer's dtype; in float32 inside `float32_activations`.
        """
        return self._run(x, args, kwargs, fast=False)

    def fast_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`forward` but for rounding, for training; see `manytune.kernels.products.fast_products`."""
        return self._run(x, args, kwargs, fast=True)

    def _run(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], *, fast: bool) -> Tensor:
        names = self.live_adapters()
        if not names:
            return self.base_layer(x, *args, **kwargs)  # type: ignore[no-any-return]
        if args or kwargs or not self._fusible(names):
            return self._forward_apart(x, names, *args, **kwargs)
        if runs_in_own_dtype(self.base_layer):
            x = x.to(torch.float32)  # the result is to have it, and its dtype is the input's
        weight: Tensor = self.base_layer.weight  # type: ignore[assignment]
        if self.fan_in_fan_out:
            weight = weight.t()
        a, b, scaling = self._joined(names)
        require_values(a)
        dropout = self.lora_dropout[names[0]]
        p = dropout.p if self.training and isinstance(dropout, nn.Dropout) else 0.0
        bias: Tensor | None = self.base_layer.bias  # type: ignore[assignment]
        return lora_linear(x, weight, bias, a, b, scaling, dropout=p, fast=fast)

    def _fusible(self, names: list[str]) -> bool:
        """Whether the layer is what the fused form computes: plain modules without hooks, one dropout mask at most."""
        if not is_plain(self.base_layer):
            return False
        for name in names:
            if self.use_dora[name]:
                return False
            a, b, dropout = self.lora_A[name], self.lora_B[name], self.lora_dropout[name]
            if type(a) is not Factor or type(b) is not Factor or b.bias is not None:
                return False
            if (
                _hooked(a)
                or _hooked(b)
                or _hooked(dropout)
                or not isinstance(dropout, (nn.Identity, nn.Dropout))
            ):
                return False
            if len(names) > 1 and self.training and isinstance(dropout, nn.Dropout):
                return False
        return True

    def _joined(self, names: list[str]) -> tuple[Tensor, Tensor, float]:
        """Several adapters are one of the summed rank: Σ sᵢ BᵢAᵢ = [s₁B₁ s₂B₂ …] [A₁; A₂; …]."""
        if len(names) == 1:
            name = names[0]
            return self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]  # type: ignore[return-value]
        a = torch.cat([self.lora_A[name].weight for name in names])  # type: ignore[misc]
        b = torch.cat(
            [self.lora_B[name].get_parameter("weight") * self.scaling[name] for name in names], dim=1
        )
        return a, b, 1.0

    def _forward_apart(self, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self.base_layer(x, *args, **kwargs)
        update = self.update(names[0], x, result)
        for name in names[1:]:
            update = update + self.update(name, x, result)
        return (result + update).to(result.dtype)


def _weight(layer: nn.Module, *path: str) -> nn.Parameter | None:
    """The weight of a module within a layer, looked up in a tenth of the time that its attributes take."""
    module = layer
    for name in path:
        module = module._modules[name]  # type: ignore[assignment]
    return module._parameters["weight"]


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )
