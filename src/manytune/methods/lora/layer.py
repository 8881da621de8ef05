"""What LoRA layers of every kind have in common: containers, scaling, merging."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from manytune.errors import AdapterError, PeftWarning
from manytune.methods.layer import AdapterLayer
from manytune.methods.lora.config import LoraConfig


class LoraLayer(AdapterLayer):
    """A layer of the base with low-rank updates beside it, one for each adapter.

    Attributes:
        lora_A, lora_B: The factors by adapter; modules, so that hooks and repr work as users expect.
        lora_embedding_A, lora_embedding_B: The same for embeddings; parameters.
        lora_dropout: Dropout on the way into A, by adapter.
        r, lora_alpha, scaling: Rank, alpha and the factor s before BA, by adapter.
    """

    adapter_layer_names: ClassVar[tuple[str, ...]] = (
        *("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"),
    )
    other_param_names: ClassVar[tuple[str, ...]] = (
        *("r", "lora_alpha", "scaling", "lora_dropout", "use_dora", "use_rslora", "lora_bias"),
    )

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.use_dora: dict[str, bool] = {}
        self.use_rslora: dict[str, bool] = {}
        self.lora_bias: dict[str, bool] = {}
        self.lora_dropout = nn.ModuleDict()
        self.lora_A = nn.ModuleDict()
        self.lora_B = nn.ModuleDict()
        self.lora_embedding_A = nn.ParameterDict()
        self.lora_embedding_B = nn.ParameterDict()
        self.lora_magnitude_vector = nn.ModuleDict()

    # -- what a subclass says

    def make_factors(self, adapter_name: str, config: LoraConfig) -> None:
        """Create and initialise one adapter's factors; rank and scaling are known by then."""
        raise NotImplementedError

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """ΔW = s · BA, in the shape of the base layer's weight and the adapter's dtype."""
        raise NotImplementedError

    # -- adapters

    def add_adapter(self, adapter_name: str, *, r: int, lora_alpha: float, config: LoraConfig) -> None:
        """Add one adapter, initialised.

        Args:
            adapter_name: Its name.
            r: Its rank at this layer.
            lora_alpha: Its alpha at this layer.
            config: Everything else.
        """
        self.r[adapter_name] = r
        self.lora_alpha[adapter_name] = lora_alpha
        self.scaling[adapter_name] = lora_alpha / (math.sqrt(r) if config.use_rslora else r)
        self.use_rslora[adapter_name] = config.use_rslora
        self.use_dora[adapter_name] = config.use_dora
        self.lora_bias[adapter_name] = config.lora_bias
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0.0 else nn.Identity()
        self.lora_dropout[adapter_name] = dropout
        self.make_factors(adapter_name, config)

    def tensors(self, adapter_name: str) -> dict[str, nn.Parameter]:
        """See `AdapterLayer.tensors`."""
        found: dict[str, nn.Parameter] = {}
        if adapter_name in self.lora_A:
            # Spelled out, since walking the modules for their parameters is a third of the time of an attachment.
            a, b = self.lora_A[adapter_name], self.lora_B[adapter_name]
            found = {"lora_A.weight": a.weight, "lora_B.weight": b.weight}  # type: ignore[dict-item]
            if b.bias is not None:
                found["lora_B.bias"] = b.bias  # type: ignore[assignment]
        for container in ("lora_embedding_A", "lora_embedding_B"):
            parameters = getattr(self, container)
            if adapter_name in parameters:
                found[container] = parameters[adapter_name]
        return found

    # -- scaling

    def _initial_scaling(self, adapter_name: str) -> float:
        r = self.r[adapter_name]
        return self.lora_alpha[adapter_name] / (math.sqrt(r) if self.use_rslora[adapter_name] else r)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set an adapter's scaling to a multiple of the configured one; nothing if this layer doesn't carry it."""
        if adapter in self.scaling:
            self.scaling[adapter] = scale * self._initial_scaling(adapter)

    def scale_layer(self, scale: float) -> None:
        """Multiply the scaling of the active adapters."""
        for name in self.active_adapters:
            if name in self.scaling:
                self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the scaling of the active adapters, or put back the configured one."""
        for name in self.active_adapters:
            if name in self.scaling:
                self.scaling[name] = (
                    self._initial_scaling(name) if scale is None else self.scaling[name] / scale
                )

    # -- merging

    def merged_tensors(self, adapter_names: Sequence[str]) -> dict[str, Tensor]:
        """W + Σ s·BA, summed in float32 at least and rounded once; b + Σ s·b_B where B has a bias."""
        weight = self.base_layer.get_parameter("weight")
        result = {"weight": _add(weight, [self.get_delta_weight(name) for name in adapter_names])}
        biases = [
            self.lora_B[name].get_parameter("bias") * self.scaling[name]
            for name in adapter_names
            if self.lora_bias[name]
        ]
        if biases:
            bias = self.base_layer.bias
            if bias is None:
                raise MergeBiasError(
                    "Impossible to merge LoRA with `lora_bias=True` because the base layer has no bias."
                )
            result["bias"] = _add(bias, biases)  # type: ignore[arg-type]
        return result

    def warn_without_bias(self) -> None:
        """A bias in B can't be merged into a layer that has none; say so early."""
        if getattr(self.base_layer, "bias", None) is None:
            warnings.warn(
                "`lora_bias=True` was passed but the targeted layer has no bias. "
                "This means that merging LoRA weights won't be possible.",
                PeftWarning,
                stacklevel=2,
            )


class MergeBiasError(AdapterError, RuntimeError):
    """A bias in B has nowhere to go."""


def _add(weight: Tensor, deltas: Sequence[Tensor]) -> Tensor:
    wide = torch.promote_types(weight.dtype, torch.float32)
    total = weight.to(wide, copy=True)
    for delta in deltas:
        total += delta
    return total.to(weight.dtype)
