"""LoRA next to a convolution: A is a convolution to r channels, B one of size 1 to the layer's channels."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from manytune.errors import AdapterError, ConfigError, PeftWarning
from manytune.methods.lora.config import LoraConfig
from manytune.methods.lora.init import initialise, refuse_beyond_linear
from manytune.methods.lora.layer import LoraLayer

ConvNd = nn.Conv1d | nn.Conv2d | nn.Conv3d


class Conv(LoraLayer):
    """y = W * x + b + Σ s · B * (A * D(x)) over the active adapters, where * is convolution.

    A (r, in, k, ...) has the layer's kernel, stride, padding and dilation; B (out, r, 1, ...) adds the channels up.
    In a layer with groups A reads all channels and B has the layer's groups. Such an update isn't a weight of a
    grouped convolution, so it can't be merged.

    Args:
        base_layer: A convolution in one, two or three dimensions.
    """

    factory: ClassVar[type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]]
    base_layer: ConvNd

    def __init__(self, base_layer: ConvNd) -> None:
        super().__init__(base_layer)
        self.in_features = base_layer.in_channels
        self.out_features = base_layer.out_channels

    def make_factors(self, adapter_name: str, config: LoraConfig) -> None:
        """A and B as convolutions; BA = 0 unless `init_lora_weights` is False."""
        r, base = self.r[adapter_name], self.base_layer
        refuse_beyond_linear(config.init_lora_weights, type(base).__name__)
        if base.groups > 1:
            self._check_groups(r, config)
        if config.lora_bias:
            self.warn_without_bias()
        self.lora_A[adapter_name] = self.factory(
            self.in_features,
            r,
            base.kernel_size,  # type: ignore[arg-type]
            stride=base.stride,  # type: ignore[arg-type]
            padding=base.padding,  # type: ignore[arg-type]
            dilation=base.dilation,  # type: ignore[arg-type]
            padding_mode=base.padding_mode,
            bias=False,
        )
        self.lora_B[adapter_name] = self.factory(
            r, self.out_features, 1, groups=base.groups, bias=config.lora_bias
        )
        initialise(self.lora_A[adapter_name], self.lora_B[adapter_name], r=r, init=config.init_lora_weights)

    def _check_groups(self, r: int, config: LoraConfig) -> None:
        groups, kind = self.base_layer.groups, type(self.base_layer).__name__
        if r % groups:
            raise ConfigError(
                f"Targeting a {kind} with groups={groups} and rank {r}. The rank must be divisible by the groups: "
                "choose another rank, one for this layer in rank_pattern, or don't target the layer."
            )
        if config.use_dora:
            warnings.warn(
                f"use_dora=True and a {kind} with groups={groups}: HF PEFT 0.21 divides by the norm of other numbers "
                "there, so that an adapter trained in one of the two libraries computes something else in the other.",
                PeftWarning,
                stacklevel=2,
            )
        warnings.warn(
            f"LoRA adapter added to a {kind} layer with groups > 1. Merging is not supported.",
            PeftWarning,
            stacklevel=2,
        )

    def norm(self, adapter_name: str, weight: Tensor) -> Tensor:
        """See `LoraLayer.norm`; in a layer with groups W is that of a layer without, zero from group to group."""
        groups = self.base_layer.groups
        if groups == 1:
            return super().norm(adapter_name, weight)
        a = self.lora_A[adapter_name].get_parameter("weight").detach().to(weight.device)
        b = self.lora_B[adapter_name].get_parameter("weight").detach().to(weight.device)
        # Each group's outputs read its own r / groups directions, and these read all channels.
        own = b.view(groups, -1, b.shape[1]) @ a.view(groups, b.shape[1], -1) * self.scaling[adapter_name]
        total = own.view(groups, -1, groups, *weight.shape[1:])  # (group, out, group of inputs, in, k, ...)
        whole = torch.zeros_like(total, dtype=torch.promote_types(total.dtype, weight.dtype))
        for group, part in enumerate(weight.view(groups, -1, *weight.shape[1:])):
            whole[group, :, group] = part
        norm: Tensor = torch.linalg.vector_norm((whole + total).flatten(0, 1).flatten(1), dim=1)
        return norm

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """ΔW = s · BA: (out, in, k, ...).

        Raises:
            AdapterError: The layer has groups.
        """
        if self.base_layer.groups > 1:
            raise AdapterError(
                f"Can't merge '{adapter_name}' into a {type(self.base_layer).__name__} with "
                f"groups={self.base_layer.groups}: its update reaches across the groups. Use the adapter unmerged."
            )
        a = self.lora_A[adapter_name].get_parameter("weight")
        b = self.lora_B[adapter_name].get_parameter("weight")
        wide = torch.promote_types(a.dtype, torch.float32)
        delta: Tensor = b.flatten(1).to(wide) @ a.flatten(1).to(wide)  # (out, in · k · ...)
        return (delta * self.scaling[adapter_name]).view(self.out_features, *a.shape[1:])

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer with its active adapters; exactly the base layer if there are none.

        Args:
            x: (batch, in, ...), or (in, ...).
            *args: Passed to the base layer.
            **kwargs: Passed to the base layer.

        Returns:
            (batch, out, ...), in the base layer's dtype.
        """
        result: Tensor = self.base_layer(x, *args, **kwargs)
        update: Tensor | None = None
        for name in self.live_adapters():
            own = self.update(name, x, result)
            update = own if update is None else update + own
        return result if update is None else (result + update).to(result.dtype)


class Conv1d(Conv):
    """LoRA next to `torch.nn.Conv1d`."""

    factory = nn.Conv1d


class Conv2d(Conv):
    """LoRA next to `torch.nn.Conv2d`."""

    factory = nn.Conv2d


class Conv3d(Conv):
    """LoRA next to `torch.nn.Conv3d`."""

    factory = nn.Conv3d


#: The LoRA layer for each kind of convolution.
KINDS: dict[type[nn.Module], type[Conv]] = {nn.Conv1d: Conv1d, nn.Conv2d: Conv2d, nn.Conv3d: Conv3d}


def conv_layer(module: nn.Module) -> Conv | None:
    """A LoRA layer around a convolution; None if the module is none."""
    kind = next((layer for base, layer in KINDS.items() if isinstance(module, base)), None)
    return None if kind is None else kind(module)  # type: ignore[arg-type]
