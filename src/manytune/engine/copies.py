"""How much memory a form of the weights takes in addition to the model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from manytune.engine.options import Runtime
from manytune.engine.quantized import GROUP
from manytune.engine.weights import Weights

#: Bytes of a weight in OpenVINO's graphs, of which there are two as soon as an adapter runs. Those of 4 bits, with two
#: numbers of two bytes for each group, are there once.
_IN_OPENVINO: dict[Weights, float] = {
    "reordered": 2 * 4,
    "plain": 2 * 4,
    "bf16": 2 * 2,
    "int8": 2 * 1,
    "int4": 0.5 + 4 / GROUP,
}
#: In torch; None for those of the weights themselves.
_IN_TORCH: dict[Weights, float | None] = {
    "reordered": None,
    "plain": 0,
    "bf16": 2,
    "int8": 1,
    "int4": 0.5 + 4 / GROUP,
}


def copied_bytes(model: nn.Module, weights: Weights, runtime: Runtime) -> int:
    """Bytes of the copies of a model's linear layers, about.

    Args:
        model: The base, whose weights aren't packed.
        weights: The form.
        runtime: What computes the forwards.
    """
    each = (_IN_OPENVINO if runtime == "openvino" else _IN_TORCH)[weights]
    return sum(
        round(weight.numel() * (weight.element_size() if each is None else each))
        for weight in _matrices(model)
    )


def _matrices(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield module.get_parameter("weight")
