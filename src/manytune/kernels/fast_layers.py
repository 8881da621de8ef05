"""A model's linear layers by faster products while it answers: without gradients, in float32 on a CPU.

`products.py` has those for training. Here a call may be one step of many, of few rows each, which are faster still with
weights in another memory order (`reordered.py`), and with layers that read the same tensor as one product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from manytune.kernels.fused import parts_of
from manytune.kernels.packed import Packed
from manytune.kernels.products import is_fast, product
from manytune.kernels.reordered import ReorderedWeights
from manytune.layer_forwards import replaced_forwards

_Forward = Callable[[Tensor], Tensor]


@contextmanager
def fast_layers(
    families: Sequence[Sequence[nn.Module]], reordered: ReorderedWeights | None = None
) -> Iterator[None]:
    """Multiply faster, where that can be, in linear layers inside the `with` block.

    The results are those of the layers' own `forward` but for rounding.

    Args:
        families: Modules that usually read the same tensor, most of them alone. Those that aren't `torch.nn.Linear` or
            transformers' `Conv1D`, and those that have a `forward` of their own in the instance, stay as they are.
        reordered: Where copies of the weights are kept for the next block; None for no copies. The weights must not
            change in the block.

    Mutates: the layers, until the block ends.
    """
    plain = [own for family in families if (own := [module for module in family if _is_plain(module)])]
    copies: dict[nn.Module, Packed] = {}
    if reordered is not None:
        weights = {family[0]: [matrix(layer) for layer in family] for family in plain}
        copies = reordered.of(
            {first: own for first, own in weights.items() if all(map(Tensor.is_contiguous, own))}
        )
    forwards: dict[nn.Module, _Forward] = {}
    for family in plain:
        forwards.update(zip(family, _forwards(family, copies.get(family[0])), strict=True))
    with replaced_forwards(forwards):
        yield


def matrix(layer: nn.Module) -> Tensor:
    """A layer's W, (out, in)."""
    weight = layer.get_parameter("weight")
    return weight.t() if isinstance(layer, Conv1D) else weight


def _is_plain(module: nn.Module) -> bool:
    if type(module) not in (nn.Linear, Conv1D) or "forward" in module.__dict__:
        return False
    weight = module._parameters.get("weight")  # a parametrized one isn't there
    return type(weight) is nn.Parameter and weight.dtype == torch.float32 and weight.is_cpu


def _forwards(layers: Sequence[nn.Module], copy: Packed | None) -> list[_Forward]:
    if copy is None:
        return [_by_own_weight(layer) for layer in layers]
    biases = [layer._parameters["bias"] for layer in layers]
    widths = [matrix(layer).shape[0] for layer in layers]
    bias = biases[0] if len(layers) == 1 else _joined(biases, widths)
    parts = parts_of(copy.product(bias), widths)
    return [_unless_recorded(layer, part) for layer, part in zip(layers, parts, strict=True)]


def _unless_recorded(layer: nn.Module, part: _Forward) -> _Forward:
    own = _by_own_weight(layer)

    def forward(x: Tensor) -> Tensor:
        usual = (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or x.dtype is not torch.float32
            or torch.is_autocast_enabled("cpu")
        )
        return own(x) if usual else part(x)

    return forward


def _by_own_weight(layer: nn.Module) -> _Forward:
    plain: _Forward = type(layer).forward.__get__(layer)
    weight, bias = matrix(layer), layer._parameters["bias"]

    def forward(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not is_fast(x, weight):
            return plain(x)
        return product(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], weight.shape[0])

    return forward


def _joined(biases: Sequence[Tensor | None], widths: Sequence[int]) -> Tensor | None:
    """The biases one below the other, with zeros in place of those that aren't there."""
    if all(bias is None for bias in biases):
        return None
    return torch.cat(
        [
            torch.zeros(width) if bias is None else bias.detach()
            for bias, width in zip(biases, widths, strict=True)
        ]
    )
