"""The base's linear layers with weights in 8 or 4 bits, for decoding: fewer bytes to read for each token.

    int8: W[o, :] = s[o] · Q[o, :]                           Q from -127 to 127, one factor for each output
    int4: W[o, g] = s[o, g] · (Q[o, g] - 8) + z[o, g]        Q from 0 to 15, two numbers for each 32 inputs of an output

These layers read and write bfloat16, whatever the base's dtype, and accumulate in float32: torch's kernels for other
dtypes aren't vectorised and run at a tenth of the plain layers' speed. Adapters are added in their own dtype. The cost
of rounding in quality, and its gain in speed, are measured in `benchmarks/weights.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manytune.errors import ConfigError
from manytune.methods.tuners.quantized_layers import packed_parameters
from manytune.mixed.layers import Forward

Bits = Literal[8, 4]

#: Inputs of a group, which shares s and z in 4 bits.
GROUP = 32


def quantized_layers(model: PreTrainedModel, bits: Bits) -> Mapping[str, Forward]:
    """Forwards that compute the model's linear layers with rounded weights, by path.

    The language model's head keeps 8 bits in either case.

    Args:
        model: On a CPU. It isn't changed.
        bits: Bits of a weight.

    Raises:
        ConfigError: The model isn't on a CPU, its weights are packed already, or a layer's inputs don't divide into
            groups.
    """
    packed = packed_parameters(model)
    if packed:
        raise ConfigError(
            f"weights='int{bits}': the base's weights are packed by {next(iter(packed.values()))} already. Use "
            "weights='plain'."
        )
    if model.device.type != "cpu":
        raise ConfigError(
            f"weights in {bits} bits run on CPUs, and the model is on {model.device}. Load the base quantized, with "
            "bitsandbytes or torchao, and leave weights='plain'."
        )
    head = model.get_output_embeddings()
    forwards: dict[str, Forward] = {}
    for path, module in model.named_modules():
        if type(module) is nn.Linear:
            four = bits == 4 and module is not head
            if four and module.in_features % GROUP:
                raise ConfigError(
                    f"weights='int4': {path} has {module.in_features} inputs, which don't divide into groups of "
                    f"{GROUP}. Use weights='int8'."
                )
            forwards[path] = quantized_layer(module, 4 if four else 8)
    return forwards


def quantized_layer(module: nn.Linear, bits: Bits) -> Forward:
    """A forward that computes a linear layer with rounded weights."""
    return _int4(module) if bits == 4 else _int8(module)


def int4_error(weight: Tensor) -> float:
    """By how much 4 bits would change a weight, (out, in): the norm of the change as a share of the weight's.

    The two numbers of a group aren't rounded, so that for weights that were stored in such a form this is 0 but for
    float32's rounding.
    """
    groups = weight.float().unflatten(1, (-1, GROUP))  # (out, groups, GROUP)
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    scale = (high - low).clamp(min=1e-12) / 15
    change = ((groups - low) / scale).round() * scale + low - groups
    return float(change.norm() / groups.norm().clamp(min=1e-12))


def int8_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Q, (out, in), and s, (out,) in bfloat16."""
    scale = (weight.abs().amax(1).clamp(min=1e-12) / 127).to(torch.bfloat16)
    # Codes for the factor after its rounding to bfloat16, which then costs accuracy at the largest weights only.
    codes = (weight.float() / scale[:, None].float()).round().clamp(-127, 127)
    return codes.to(torch.int8), scale


def int4_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Q, (out, in), and (s, z), (in / group, out, 2) in bfloat16."""
    groups = weight.float().unflatten(1, (-1, GROUP))  # (out, groups, GROUP)
    low, high = groups.amin(2), groups.amax(2)
    scale = (high - low).clamp(min=1e-12) / 15
    pairs = torch.stack((scale, low + 8 * scale), dim=2).to(torch.bfloat16)  # (out, groups, 2)
    scale, zero = pairs.float().unbind(2)
    codes = ((groups - zero[..., None]) / scale[..., None] + 8).round().clamp(0, 15)
    return codes.flatten(1).to(torch.int32), pairs.transpose(0, 1).contiguous()


def _int8(module: nn.Linear) -> Forward:
    weight, scale = int8_weight(module.weight.detach())

    def product(x: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(x, weight, scale)

    return _in_bfloat16(product, module.bias)


def _int4(module: nn.Linear) -> Forward:
    codes, pairs = int4_weight(module.weight.detach())
    weight = torch._convert_weight_to_int4pack_for_cpu(codes, 1)

    def product(x: Tensor) -> Tensor:
        return torch._weight_int4pack_mm_for_cpu(x, weight, GROUP, pairs)

    return _in_bfloat16(product, module.bias)


def _in_bfloat16(product: Forward, bias: Tensor | None) -> Forward:
    bias = None if bias is None else bias.detach()

    def forward(x: Tensor) -> Tensor:
        y: Tensor = product(x.flatten(0, -2).to(torch.bfloat16)).to(x.dtype)
        return (y if bias is None else y + bias).view(*x.shape[:-1], -1)

    return forward
