"""What LoRA layers of every kind have in common: containers, scaling, merging."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from manytune.errors import AdapterError, ConfigError, PeftWarning
from manytune.methods.lora.config import LoraConfig, scaling_of
from manytune.methods.lora.dora import Magnitude, along, output_norm
from manytune.methods.lora.factor import require_values
from manytune.methods.lora.terms import lora_terms
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base_layers import BaseLayer
from manytune.methods.tuners.merging import added
from manytune.methods.tuners.offloading import is_offloaded
from manytune.methods.tuners.terms import Terms


class _OnDemand:
    """A container that few layers need, made when it is first asked for: that saves a tenth of an attachment.

    Args:
        kind: `torch.nn.ModuleDict` or `ParameterDict`.
    """

    def __init__(self, kind: type[nn.Module]) -> None:
        self.kind = kind

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, layer: nn.Module, owner: type) -> Any:
        if self.name not in layer._modules:
            layer._modules[self.name] = self.kind()
        return layer._modules[self.name]


_ON_DEMAND = ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")


class LoraLayer(AdapterLayer):
    """A layer of the base with low-rank updates next to it, one for each adapter.

    Attributes:
        lora_A, lora_B: The factors by adapter; modules, so that hooks and repr work as users expect.
        lora_embedding_A, lora_embedding_B: The same for embeddings; parameters.
        lora_magnitude_vector: DoRA's m by adapter; modules.
        lora_dropout: Dropout on the way into A, by adapter.
        r, lora_alpha, scaling: Rank, alpha and the factor s before BA, by adapter.
    """

    adapter_layer_names: ClassVar[tuple[str, ...]] = (
        *("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"),
    )
    other_param_names: ClassVar[tuple[str, ...]] = (
        *("r", "lora_alpha", "scaling", "lora_dropout", "use_dora", "use_rslora", "lora_bias", "frozen_a"),
    )

    kind: ClassVar[str] = "lora"
    #: The base layer's parameter that BA is added to.
    weight_name: ClassVar[str] = "weight"
    #: Its dimension that counts the outputs.
    output_dim: int = 0

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.r = {}
        self.lora_alpha = {}
        self.scaling = {}
        self.use_dora = {}
        self.use_rslora = {}
        self.lora_bias = {}
        self.frozen_a = {}
        for name in ("lora_dropout", "lora_A", "lora_B"):
            self._modules[name] = nn.ModuleDict()

    def made(self, containers: Sequence[str]) -> Sequence[str]:
        """See `AdapterLayer.made`."""
        return [name for name in containers if name not in _ON_DEMAND or name in self._modules]

    lora_A: nn.ModuleDict  # noqa: N815  (peft's name)
    lora_B: nn.ModuleDict  # noqa: N815  (peft's name)
    lora_dropout: nn.ModuleDict
    lora_embedding_A = _OnDemand(nn.ParameterDict)  # noqa: N815  (peft's name)
    lora_embedding_B = _OnDemand(nn.ParameterDict)  # noqa: N815  (peft's name)
    lora_magnitude_vector = _OnDemand(nn.ModuleDict)

    r: dict[str, int]
    lora_alpha: dict[str, float]
    scaling: dict[str, float]
    use_dora: dict[str, bool]
    use_rslora: dict[str, bool]
    lora_bias: dict[str, bool]
    frozen_a: dict[str, bool]

    # -- what a subclass says

    @abstractmethod
    def make_factors(self, adapter_name: str, config: LoraConfig) -> None:
        """Create and initialise one adapter's factors; rank and scaling are known by then."""

    @abstractmethod
    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """ΔW = s · BA, in the shape of the base layer's weight and the adapter's dtype."""

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
        self.use_rslora[adapter_name] = config.use_rslora
        self.scaling[adapter_name] = self._initial_scaling(adapter_name)
        self.use_dora[adapter_name] = config.use_dora
        self.lora_bias[adapter_name] = config.lora_bias
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0.0 else nn.Identity()
        dropout.__dict__["training"] = self.training
        self.lora_dropout[adapter_name] = dropout
        if config.freeze_a:
            self.frozen_a[adapter_name] = True
        self.make_factors(adapter_name, config)
        if config.use_dora:
            self._make_magnitude(adapter_name, offload=config.runtime_config.ephemeral_gpu_offload)

    def tensors(self, adapter_name: str) -> dict[str, nn.Parameter]:
        """See `AdapterLayer.tensors`."""
        found: dict[str, nn.Parameter] = {}
        a = self.lora_A._modules.get(adapter_name)
        if a is not None:
            # Spelled out, since walking the modules for their parameters is a third of the time of an attachment.
            b: Any = self.lora_B[adapter_name]
            found = {"lora_A.weight": a.weight, "lora_B.weight": b.weight}  # type: ignore[dict-item]
            if b.bias is not None:
                found["lora_B.bias"] = b.bias
        for container in ("lora_embedding_A", "lora_embedding_B"):
            if container in self._modules and adapter_name in getattr(self, container):
                found[container] = getattr(self, container)[adapter_name]
        if "lora_magnitude_vector" in self._modules and adapter_name in self.lora_magnitude_vector:
            found["lora_magnitude_vector"] = self.lora_magnitude_vector[adapter_name].get_parameter("weight")
        return found

    @classmethod
    def terms(
        cls, base: BaseLayer, tensors: Mapping[str, Tensor], config: LoraConfig, scaling: float
    ) -> Terms:
        """See `AdapterLayer.terms`."""
        return lora_terms(base, tensors, config.rank_at(base.path), scaling)

    def memory_name(self, adapter_name: str, key: str) -> str:
        """See `AdapterLayer.memory_name`."""
        name = super().memory_name(adapter_name, key)
        return f"{name}.weight" if key == "lora_magnitude_vector" else name

    def set_requires_grad(self, adapter_name: str, *, requires_grad: bool = True) -> None:
        """See `AdapterLayer.set_requires_grad`; with LoRA-FA A stays frozen."""
        super().set_requires_grad(adapter_name, requires_grad=requires_grad)
        if adapter_name in self.frozen_a:
            self.lora_A[adapter_name].requires_grad_(False)

    # -- DoRA

    def _make_magnitude(self, adapter_name: str, *, offload: bool) -> None:
        """Let m be ‖W + ΔW‖, so that it changes nothing at first."""
        weight = self.origin([adapter_name])
        factor = next(iter(self.tensors(adapter_name).values()))
        if weight.is_meta and is_offloaded(self.base_layer):
            raise ConfigError(
                f"use_dora=True starts from the weight of a {type(self.base_layer).__name__}, which is kept elsewhere "
                "between calls (a device_map with offloading). Load the base without it, or leave the layer out."
            )
        if factor.is_meta or weight.is_meta:
            norm = torch.empty(weight.shape[self.output_dim], device="meta", dtype=factor.dtype)
        else:
            # It is large next to the layer's device if that is a CPU, and an accelerator has room for one at a time.
            lent = torch.accelerator.current_accelerator(check_available=True) if offload else None
            norm = self.norm(adapter_name, weight.to(lent or weight.device)).to(weight.device)
        if isinstance(self.base_layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            norm = along(norm, 1, weight.dim())
        self.lora_magnitude_vector[adapter_name] = Magnitude(norm)

    def gains(self, adapter_name: str, weight: Tensor) -> Tensor:
        """DoRA's m / ‖W + ΔW‖: (out,); the norm counts as a constant."""
        magnitude: Tensor = self.lora_magnitude_vector[adapter_name].get_parameter("weight").flatten()
        return magnitude / self.norm(adapter_name, weight).to(magnitude.dtype)

    def norm(self, adapter_name: str, weight: Tensor) -> Tensor:
        """‖W + ΔW‖ of each output, without a gradient, on W's device: (out,)."""
        delta = self.get_delta_weight(adapter_name).detach().to(weight.device)
        return output_norm(weight, delta, self.output_dim)

    def update(self, adapter_name: str, x: Tensor, result: Tensor) -> Tensor:
        """What one adapter adds to the output of a linear or convolutional base layer.

        s · B A D(x); with DoRA, where g is `gains`, (g - 1) · W D(x) + g · s · B A D(x).

        Args:
            adapter_name: The adapter.
            x: The layer's input.
            result: The base layer's output for x.
        """
        dropout = self.lora_dropout[adapter_name]
        require_values(self.lora_A[adapter_name].get_parameter("weight"))
        low: Tensor = dropout(x.to(self.lora_A[adapter_name].get_parameter("weight").dtype))
        own: Tensor = self.lora_B[adapter_name](self.lora_A[adapter_name](low)) * self.scaling[adapter_name]
        if not self.use_dora[adapter_name]:
            return own
        gains = self.gains(adapter_name, self.base_layer.get_parameter(self.weight_name))
        bias = self.bias
        dims = self.base_layer.get_parameter(self.weight_name).dim() - 2
        if dropout.training and isinstance(dropout, nn.Dropout):
            result = self.base_layer(low.to(x.dtype))
        plain = result if bias is None else result - bias.view(-1, *(1,) * dims)
        gains = gains.view(-1, *(1,) * dims)
        return (gains - 1) * plain + gains * own

    # -- scaling

    def _initial_scaling(self, adapter_name: str) -> float:
        alpha, r = self.lora_alpha[adapter_name], self.r[adapter_name]
        return scaling_of(alpha, r, use_rslora=self.use_rslora[adapter_name])

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
        """W + Σ s·BA, summed in float32 at least and rounded once; b + Σ s·b_B where B has a bias.

        With DoRA g · (W + s·BA) - W takes the place of s·BA.
        """
        dtype = self.base_layer.get_parameter(self.weight_name).dtype
        weight = self.origin(adapter_names)
        deltas = [self._merged_delta(name, weight) for name in adapter_names]
        result = {self.weight_name: added(weight, deltas, dtype)}
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
            result["bias"] = added(bias, biases, bias.dtype)  # type: ignore[arg-type]
        return result

    def origin(self, adapter_names: Sequence[str]) -> Tensor:
        """The weight that these adapters are added to; in the base's dtype or wider. Not to be changed."""
        return self.base_layer.get_parameter(self.weight_name).data

    def is_additive(self, adapter_name: str) -> bool:
        """See `AdapterLayer.is_additive`."""
        return not self.use_dora[adapter_name]

    def _merged_delta(self, adapter_name: str, weight: Tensor) -> Tensor:
        delta = self.get_delta_weight(adapter_name)
        if not self.use_dora[adapter_name]:
            return delta
        gains = along(self.gains(adapter_name, weight), self.output_dim, weight.dim())
        return gains * (weight + delta) - weight

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
