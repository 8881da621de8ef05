"""Adapters' updates of a graph's products with weights of 4 bits, which these add themselves (see `four_bits`).

A layer has no operation more then, and U is fetched from memory while the base's weights are multiplied.
The numbers are those of the operation for updates alone (see `native`), so that a row doesn't depend on whose adapters
are in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from manytune.engine.openvino.four_bits import LANES, PRODUCT, FourBits
from manytune.engine.openvino.marks import label_of, put
from manytune.engine.openvino.native import Part
from manytune.engine.openvino.outline import UpdateInput


def put_into_products(
    four_bits: FourBits,
    plan: Callable[[], Any],
    numbers: Mapping[UpdateInput, int],
    read: Mapping[UpdateInput, Any],
    results: dict[str, Any],
) -> set[UpdateInput]:
    """Let products add the updates that they can: those of their own input, to outputs that nothing else reads before.

    Args:
        four_bits: The operations.
        plan: Makes the input of the graph that `Operation.node` reads.
        numbers: The updates, each with its number.
        read: What each one reads.
        results: What each adds to; products that are replaced are replaced here, too.

    Returns:
        The updates that are done.
    """
    apart = {_name(results[one.path].get_node()) for one in numbers if one.reads_output}
    products: dict[str, Any] = {}
    parts: dict[str, list[Part]] = {}
    done: set[UpdateInput] = set()
    for one, number in numbers.items():
        y = results[one.path]
        product, column = _product(y)
        if product is None or _name(y.get_node()) in apart or (column | one.outputs) % LANES:
            continue
        if _reads(product, read[one]):
            products[_name(product)] = product
            part = Part(number, 0, column, one.outputs, one.inputs, one.activation)
            parts.setdefault(_name(product), []).append(part)
            done.add(one)
    for name, product in products.items():
        output = four_bits.with_updates(product, plan().output(0), parts[name]).output(0)
        put(product, output)
        results |= {path: output for path, y in results.items() if y == product.output(0)}
    return done


def _product(y: Any) -> tuple[Any, int]:
    """The product of which y is a part, and y's first column there; None for anything else."""
    node, column = y.get_node(), 0
    if node.get_type_name() == "VariadicSplit":
        before = node.outputs()[: y.get_index()]
        column = sum(one.get_partial_shape()[-1].get_length() for one in before)
        node = node.input_value(0).get_node()
    return (node if node.get_type_name() == PRODUCT else None), column


def _reads(product: Any, z: Any) -> bool:
    """Whether a product reads z, but for marks."""
    x = product.input_value(0)
    while x != z and label_of(x.get_node()) is not None:
        x = x.get_node().input_value(0)
    return bool(x == z)


def _name(node: Any) -> str:
    name: str = node.get_friendly_name()
    return name
