"""Gates of a graph, silu(a) · b, by the operation that multiplies with weights of 4 bits.

A gate is computed with the product whose halves a and b are, unless something comes between them, such as what adapters
add. It gives the same numbers either way, so that a row doesn't depend on whose adapters are in the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from manytune.engine.openvino.four_bits import PRODUCT, FourBits
from manytune.engine.openvino.marks import label_of, put


def put_gates(graph: Any, operations: FourBits) -> None:
    """Replace each gate of a graph.

    Args:
        graph: A graph, which is changed in place.
        operations: Compute gates.
    """
    for node in graph.get_ordered_ops():
        inputs = _gate(node)
        if inputs is not None:
            put(node, _replacement(node, inputs, operations).output(0))


def _gate(node: Any) -> tuple[Any, Any] | None:
    """The outputs a and b that a node multiplies as silu(a) · b; None for any other node."""
    if node.get_type_name() != "Multiply":
        return None
    factors = [node.input_value(place) for place in range(2)]
    for one, other in (factors, factors[::-1]):
        if not _is_silu(one.get_node()) or _size(other) is None:
            continue
        if one.get_partial_shape().compatible(other.get_partial_shape()):
            return one.get_node().input_value(0), other
    return None


def _is_silu(node: Any) -> bool:
    """Whether a node computes x / (1 + exp(-x)), without another factor of x in the exponent."""
    if node.get_type_name() != "Swish":
        return False
    factors = [node.input_value(place).get_node() for place in range(1, node.get_input_size())]
    return all(one.get_type_name() == "Constant" and bool((one.data == 1).all()) for one in factors)


def _replacement(node: Any, inputs: tuple[Any, Any], operations: FourBits) -> Any:
    split = inputs[0].get_node()
    sizes = [_size(one) for one in split.outputs()]
    is_one = split.get_type_name() == "VariadicSplit" and inputs[1].get_node() == split
    if not is_one or [one.get_index() for one in inputs] != [0, 1] or sizes != [sizes[0]] * 2:
        return operations.gate(inputs)
    joined = split.input_value(0)
    product = joined.get_node()
    if product.get_type_name() == PRODUCT and _readers(joined) == [split]:
        silus = _readers(inputs[0])
        if len(silus) == 1 and _readers(silus[0].output(0)) == _readers(inputs[1]) == [node]:
            found = operations.gated_product(product)
            if found is not None:
                return found
    return operations.gate([joined])


def _readers(output: Any) -> Sequence[Any]:
    """The nodes that read an output, but for marks that are left over."""
    nodes = [one.get_node() for one in output.get_target_inputs()]
    return [one for one in nodes if label_of(one) is None]


def _size(output: Any) -> int | None:
    """The last dimension; None where it isn't known."""
    shape = output.get_partial_shape()
    if not shape.rank.is_static or not len(shape) or not shape[-1].is_static:
        return None
    size: int = shape[-1].get_length()
    return size
