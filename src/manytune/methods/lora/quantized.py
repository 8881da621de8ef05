"""LoRA next to a linear layer whose weight is packed into 8 or 4 bits (QLoRA: Dettmers et al., arXiv 2305.14314)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from manytune.errors import ConfigError
from manytune.methods.lora.config import LoraConfig
from manytune.methods.lora.init import starts_from_weight
from manytune.methods.lora.linear import Linear
from manytune.methods.tuners.quantized_layers import dequantized_weight, quantization_backend


class QuantizedLinear(Linear):
    """y = base(x) + Σ s · D(x) Aᵀ Bᵀ, where `base` unpacks its weight as it multiplies. Gradients reach x, A and B.

    DoRA's norm needs the weight at each step, which is unpacked for that.
    """

    def make_factors(self, adapter_name: str, config: LoraConfig) -> None:
        """See `Linear.make_factors`.

        Raises:
            ConfigError: The adapter would take a part of the weight over, which a packed one can't give.
        """
        if starts_from_weight(config.init_lora_weights):
            raise ConfigError(
                f"init_lora_weights={config.init_lora_weights!r} changes the base's weight, which is quantized by "
                f"{quantization_backend(self.base_layer)}. Use init_lora_weights=True, or load the base unquantized."
            )
        super().make_factors(adapter_name, config)

    def origin(self, adapter_names: Sequence[str]) -> Tensor:
        """See `LoraLayer.origin`; unpacked."""
        packed = quantization_backend(self.base_layer)
        return dequantized_weight(self.base_layer) if packed else super().origin(adapter_names)

    def gains(self, adapter_name: str, weight: Tensor) -> Tensor:
        """See `LoraLayer.gains`; the norm is that of the unpacked weight."""
        return super().gains(adapter_name, self.origin([]))

    def _fusible(self, names: list[str]) -> bool:
        return False


def is_quantized_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer with a packed weight."""
    return isinstance(module, nn.Linear) and quantization_backend(module) is not None
