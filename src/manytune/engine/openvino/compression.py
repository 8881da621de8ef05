"""A graph's products with weights in 8 or 4 bits, in the form that OpenVINO multiplies without unpacking them first.

    int8: W[o, :] = s[o] · Q[o, :]                    Q from -127 to 127, one factor for each output
    int4: W[o, g] = s[o, g] · (Q[o, g] - z[o, g])     Q from 0 to 15, two numbers for each 32 inputs

z isn't whole, as in a file of such weights (GGUF's Q4_1). OpenVINO's products with integers know whole zero points
only, and to round z was measured to cost SmolLM2-135M 0.18 nats a token. So weights of four bits are multiplied by an
operation of manytune's own (see `four_bits`). Where there is none, a weight takes a byte, in which z is rounded to a
17th, and no Q at all:

    W[o, g] = s[o, g] / 17 · (17 Q[o, g] - Z[o, g])   17 Q and Z = 17 z from 0 to 255

To keep 4 bits with the zero point 8, and to add what is left of z from sums of each group, takes longer, since every
product has three more operations then.

Products with weights in 8 or 4 bits round each token's activations to 8 bits as well, in groups of 32, on processors
that multiply these faster (VNNI).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manytune.engine.openvino.conversion import INPUT, OUTPUT, Converted
from manytune.engine.openvino.four_bits import FourBits, has_four_bits
from manytune.engine.openvino.library import ops
from manytune.engine.openvino.marks import label_of, marks_in, put
from manytune.engine.quantized import GROUP, Bits, int8_weight


def compress(converted: Converted, bits: Bits, *, head: str, operations: FourBits | None = None) -> Converted:
    """Round the weights of all products of a graph, and take those of one input together, as queries, keys and values.

    The head, and layers whose inputs don't divide into groups, keep 8 bits in either case.

    Args:
        converted: A graph, which is changed in place.
        bits: Bits of a weight.
        head: Path of the head.
        operations: Multiply with weights of 4 bits; None for OpenVINO's own.

    Returns:
        The same graph, and which layers share a product.
    """
    of_head = marks_in(converted.graph)[f"{OUTPUT}{head}"].input_value(0).get_node()
    products: dict[object, list[_Product]] = {}
    for node in converted.graph.get_ordered_ops():
        if node.get_type_name() == "MatMul" and (constant := _constant_of(node)) is not None:
            product = _Product(node, constant, 8)
            if bits == 4 and product.inputs % GROUP == 0 and node != of_head:
                product = replace(product, bits=4)
            products.setdefault(product.key, []).append(product)
    shared: dict[str, str] = {}
    for together in products.values():
        _replace(together, operations)
        if len(together) > 1:
            shared |= {str(one.layer): str(together[0].layer) for one in together}
    return replace(converted, shared=shared)


@dataclass(frozen=True)
class _Product:
    """A product of a graph with a constant.

    Attributes:
        node: Its node.
        constant: The constant's node, (out, in), or (in, out) where the product doesn't transpose it.
        bits: Bits of a weight that it gets.
    """

    node: Any
    constant: Any
    bits: Bits

    @property
    def inputs(self) -> int:
        """Size of the last dimension of x."""
        return self._shape[1]

    @property
    def outputs(self) -> int:
        """Size of the last dimension of the product."""
        return self._shape[0]

    @property
    def _shape(self) -> tuple[int, int]:
        first, second = self.constant.get_output_shape(0)
        return (first, second) if self.node.get_attributes()["transpose_b"] else (second, first)

    @property
    def weight(self) -> Tensor:
        """A copy of the constant, (out, in), in float32; made when it is asked for, as all at once would take much."""
        weight = torch.from_numpy(np.array(self.constant.get_data(dtype=np.float32)))
        return weight if self.node.get_attributes()["transpose_b"] else weight.T

    @property
    def x(self) -> Any:
        """What is multiplied."""
        return self.node.input_value(0)

    @property
    def is_transposed(self) -> bool:
        """Whether the last two dimensions of x are exchanged first."""
        return bool(self.node.get_attributes()["transpose_a"])

    @property
    def layer(self) -> str | None:
        """Path of the layer whose input is x; None if x isn't one."""
        label = label_of(self.x.get_node()) or ""
        return label.removeprefix(INPUT) if label.startswith(INPUT) else None

    @property
    def key(self) -> object:
        """Products of the same key can be taken as one."""
        if self.layer is None or self.is_transposed:
            return self.node.get_friendly_name()
        source = self.x.get_node().input_value(0)
        return source.get_node().get_friendly_name(), source.get_index(), self.bits


def _replace(together: Sequence[_Product], operations: FourBits | None) -> None:
    """Put one product in place of several of one input; it reads the input of the first one's layer."""
    first = together[0]
    x = ops.transpose(first.x, _exchange_of_last(first.x)).output(0) if first.is_transposed else first.x
    product = multiply(x, torch.cat([one.weight for one in together]), first.bits, operations)
    parts = [product.output(0)]
    if len(together) > 1:
        sizes = _numbers(*(one.outputs for one in together))
        parts = ops.variadic_split(product, ops.constant(np.int64(-1)), sizes).outputs()
    for one, part in zip(together, parts, strict=True):
        put(one.node, part)


def multiply(x: Any, weight: Tensor, bits: Bits, operations: FourBits | None = None) -> Any:
    """A node that computes x Wᵀ with a weight, (out, in), rounded by the formula for so many bits.

    Args:
        x: An output of a graph, (..., in), whose number of dimensions is known.
        weight: W; with 4 bits, in divides into groups.
        bits: Bits of a weight.
        operations: See `compress`.
    """
    if bits == 4 and operations is not None and has_four_bits(weight):
        return operations.product(x, weight)
    return ops.matmul(x, _int4(weight) if bits == 4 else _int8(weight), False, True)


def _constant_of(node: Any) -> Any | None:
    """The matrix that a product multiplies with, a constant's node; None if it is computed in the graph."""
    source = node.input_value(1).get_node()
    if source.get_type_name() == "Convert":  # one in half precision
        source = source.input_value(0).get_node()
    return source if source.get_type_name() == "Constant" and len(source.get_output_shape(0)) == 2 else None


def _int8(weight: Tensor) -> Any:
    codes, scale = int8_weight(weight)
    factors = ops.constant(scale.float()[:, None].numpy())
    return ops.multiply(ops.convert(ops.constant(codes.numpy()), "f32"), factors)


def _int4(weight: Tensor) -> Any:
    groups = weight.float().unflatten(1, (-1, GROUP))  # (out, groups, GROUP)
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    step = ((high - low) / 15).clamp(min=1e-12)
    rounded = low + step * ((groups - low) / step).round()
    # 17 Q and Z where low is at most and high at least 0. Elsewhere 0 has to be among the values of a byte, too.
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    zero = (-low / scale).round()
    codes = (rounded / scale + zero).round().clamp(0, 255)
    bytes_ = (ops.constant(one.to(torch.uint8).numpy()) for one in (codes, zero))
    difference = ops.subtract(*(ops.convert(one, "f32") for one in bytes_))
    weights = ops.multiply(difference, ops.constant(scale.numpy()))
    return ops.reshape(weights, _numbers(*weight.shape), False)


def _exchange_of_last(x: Any) -> Any:
    *first, row, column = range(x.get_partial_shape().rank.get_length())
    return _numbers(*first, column, row)


def _numbers(*values: int) -> Any:
    return ops.constant(np.array(values, dtype=np.int64))
