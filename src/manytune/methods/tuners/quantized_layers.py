"""Layers of the base whose weights are packed into 8 or 4 bits by bitsandbytes or torchao.

Adapters are attached as to any linear layer. What needs the weight itself, as merging does, takes a copy in full
precision: adding ΔW to a packed weight would round it to a few bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from manytune.errors import ConfigError

_LIBRARIES = ("bitsandbytes", "torchao")


def quantization_backend(module: nn.Module) -> str | None:
    """The library that packs a layer's weight, such as `bitsandbytes`; None if nothing does."""
    for part in (module, getattr(module, "weight", None)):
        library = type(part).__module__.partition(".")[0]
        if library in _LIBRARIES:
            return library
    return None


def packed_parameters(model: nn.Module) -> dict[str, str]:
    """The packed parameters of a model, and of each the library that packs it."""
    return {
        f"{path}.weight".lstrip("."): library
        for path, module in model.named_modules()
        if "weight" in module._parameters and (library := quantization_backend(module))
    }


def refuse_packed(packed: Mapping[str, str], what: str, instead: str) -> None:
    """Refuse to train packed parameters: a step of the optimizer is finer than their few bits.

    Args:
        packed: Those that would train, as `packed_parameters` gives them; nothing happens if there are none.
        what: What would train them, such as the method.
        instead: What to do instead, as a sentence.

    Raises:
        ConfigError: There are some.
    """
    if not packed:
        return
    name, library = next(iter(packed.items()))
    others = f" (and {len(packed) - 1} more)" if len(packed) > 1 else ""
    raise ConfigError(
        f"{what} would train {name}{others}, which {library} has packed into a few bits; an optimizer's steps are "
        f"finer than these. {instead}"
    )


def keep_differentiable(model: nn.Module) -> None:
    """Keep bitsandbytes' 4-bit layers in the form that gradients pass through.

    On CPUs with AVX512-BF16 such a layer repacks its weight the first time that it is called in evaluation mode. From
    then on no gradient comes back to what lies below it, in training mode either, and the weight can't be restored.

    Mutates: those layers, which won't do that from now on.

    Raises:
        ConfigError: A layer has done it already.
    """
    for path, module in model.named_modules():
        if not getattr(module, "support_avx512bf16_for_cpu", False):
            continue
        if getattr(cast(Any, module.weight).quant_state, "packing_format_for_cpu", False):
            raise ConfigError(
                f"{path}: bitsandbytes has repacked this 4-bit layer when it was called in evaluation mode (on CPUs "
                "with AVX512-BF16), and gradients don't pass through it any more. Load the base again, and attach the "
                "adapter before calling it."
            )
        module.support_avx512bf16_for_cpu = False


def readable(weight: Tensor) -> Tensor:
    """A parameter whose elements can be picked out, which those of torchao's packed ones can't."""
    packed = type(weight).__module__.startswith("torchao.")
    return weight.dequantize() if packed else weight


def dequantized_weight(layer: nn.Module) -> Tensor:
    """A packed layer's weight, (out, in), in the precision that it was packed from or float32; a new tensor."""
    weight = cast(Any, layer.weight)
    packed = type(weight).__name__
    with torch.no_grad():
        if packed == "Params4bit":
            from bitsandbytes.functional import dequantize_4bit

            found: Tensor = dequantize_4bit(weight.data, weight.quant_state)
        elif packed == "Int8Params":
            from bitsandbytes.functional import int8_vectorwise_dequant

            # Its first call moves the scales from the weight to the layer's state.
            state = cast(Any, layer.state)
            found = int8_vectorwise_dequant(weight.data, weight.SCB if state.SCB is None else state.SCB)
        else:
            found = weight.dequantize()
    return found


class DequantizedLinear(nn.Linear):
    """A linear layer in full precision in the place of a packed one. Like that one it takes any dtype and returns it.

    Args:
        packed: The layer whose weight is unpacked; it stays as it is.
    """

    def __init__(self, packed: nn.Module) -> None:
        weight = dequantized_weight(packed)
        out_features, in_features = weight.shape
        bias = cast("nn.Parameter | None", packed.bias)
        super().__init__(in_features, out_features, bias=bias is not None, device="meta")
        self.train(packed.training)
        self.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            self.bias = nn.Parameter(bias.detach().to(weight.dtype, copy=True), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        """Compute x Wᵀ + b in the weight's dtype, and give it back in x's; x is (..., in)."""
        return super().forward(input.to(self.weight.dtype)).to(input.dtype)


def note_unpacked(model: nn.Module) -> None:
    """Write into the configuration of a packed base which layers merging left in full precision.

    Without that, a model that is saved then can't be loaded: transformers would look for packed weights in them.
    """
    quantizer: Any = getattr(model, "hf_quantizer", None)
    plain = [path for path, module in model.named_modules() if isinstance(module, DequantizedLinear)]
    if quantizer is None or not plain:
        return
    if not packed_parameters(model):
        quantizer.remove_quantization_config(model)
        return
    options = quantizer.quantization_config
    known = [name for name in ("llm_int8_skip_modules", "modules_to_not_convert") if hasattr(options, name)]
    for name in known[:1]:
        setattr(options, name, sorted({*(quantizer.modules_to_not_convert or ()), *plain}))
