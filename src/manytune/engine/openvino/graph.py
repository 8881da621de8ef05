"""A converted graph with attention over pages and adapters' terms in place of its marks, ready to be compiled.

What adapters add to a layer is computed for all of them at once, each token keeping its own ranks: with D and U of all
adapters one below the other, (ranks, in) and (ranks, out), and own(t, r) true where rank r is of token t's adapter,

    y[t] = c[slot t] ⊙ (W (a[slot t] ⊙ x[t]) + b) + d[slot t] + Σ_{r: own(t, r)} φ(D[r] z[t] + e[r]) U[r] + f[slot t]

The sum is one operation in C++ for all layers that read the same z (see `native`). Without it, it is made of products
with the ranks of several adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from manytune.engine.openvino.conversion import ATTENTION, INPUT, OUTPUT, Attention, Converted
from manytune.engine.openvino.four_bits import FourBits
from manytune.engine.openvino.gates import put_gates
from manytune.engine.openvino.library import node_types, ops, ov
from manytune.engine.openvino.marks import marks_in, put
from manytune.engine.openvino.native import Operation, Part
from manytune.engine.openvino.outline import FactorInput, Outline, UpdateInput
from manytune.engine.openvino.product_updates import put_into_products

#: Tokens of a page of the cache; the CPU's kernels know no other size.
PAGE = 32


def build(
    converted: Converted,
    outline: Outline,
    *,
    head: str,
    cache_type: Any,
    operation: Operation | None = None,
    four_bits: FourBits | None = None,
) -> Any:
    """A graph that can be compiled.

    Args:
        converted: The base; it isn't changed.
        outline: What adapters do in it.
        head: Path of the layer that sees the tokens in `kept` alone.
        cache_type: OpenVINO's type of cached keys and values.
        operation: Adds updates; None for products.
        four_bits: Compute products in 4 bits, and gates then; None for OpenVINO.

    Returns:
        A graph with the inputs of `converted` and those named in `_Inputs` and in the outline.
    """
    graph = converted.graph.clone()
    marks = marks_in(graph)
    marks |= {f"{INPUT}{path}": marks[f"{INPUT}{first}"] for path, first in converted.shared.items()}
    inputs = _Inputs()
    _put_attention(marks, converted.attentions, inputs, cache_type)
    _put_terms(marks, outline, inputs, head, operation, four_bits)
    for label, node in marks.items():
        if label.startswith((INPUT, OUTPUT)):
            put(node, node.input_value(0))
    if four_bits is not None:
        put_gates(graph, four_bits)
    graph.add_parameters(list(inputs.made.values()))
    graph.validate_nodes_and_infer_types()
    return graph


class _Inputs:
    """Inputs that are added to a graph, by name."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}

    def floats(self, name: str, *shape: int) -> Any:
        return self._of(name, ov.Type.f32, shape)

    def cached(self, name: str, kind: Any, *shape: int) -> Any:
        return self._of(name, kind, shape)

    def integers(self, name: str, *shape: int) -> Any:
        return self._of(name, ov.Type.i32, shape)

    def flags(self, name: str, *shape: int) -> Any:
        return self._of(name, ov.Type.boolean, shape)

    def _of(self, name: str, kind: Any, shape: tuple[int, ...]) -> Any:
        if name not in self.made:
            parameter = ops.parameter(ov.PartialShape(list(shape)), kind, name=name)
            parameter.output(0).set_names({name})
            self.made[name] = parameter
        return self.made[name]


def _put_attention(
    marks: dict[str, Any], attentions: Iterable[Attention], inputs: _Inputs, cache_type: Any
) -> None:
    for one in attentions:
        node = marks[f"{ATTENTION}{one.layer}"]
        shape = (-1, one.key_heads, PAGE, one.head_dim)
        given = [
            *(node.input_value(place) for place in range(3)),  # queries, keys, values
            *(inputs.cached(f"{name} {one.layer}", cache_type, *shape) for name in ("keys", "values")),
            *(inputs.integers(name, -1) for name in ("past", "begins", "pages", "page_begins")),
            _number(one.scaling, np.float32),
            _number(one.window or 0, np.int32),
            _none_of(np.float32),  # slopes
            inputs.integers("longest"),
            # What isn't used: scores, moving cached keys, sparse attention, sinks, evicting pages, drafts in trees.
            *(_none_of(kind) for kind in (np.int32, np.int32, np.int32, np.float32, np.float32)),
            *(_number(0, np.int32) for _ in range(2)),
            _none_of(np.float32),
            _number(0, np.int32),
            *(_none_of(kind) for kind in (np.int32, np.int32, np.int32, np.int32, np.uint8, np.int32)),
        ]
        attention = node_types._PagedAttentionExtension([_output(each) for each in given])
        facts = attention.get_rt_info()  # what the plugin lays the cache out by
        for name in ("k", "v"):
            facts[f"num_{name}_heads"] = one.key_heads
            facts[f"{name}_head_size"] = one.head_dim
        put(node, attention.output(0))


def _put_terms(
    marks: dict[str, Any],
    outline: Outline,
    inputs: _Inputs,
    head: str,
    operation: Operation | None,
    four_bits: FourBits | None,
) -> None:
    for factor in sorted(outline.factors):
        if factor.kind == "inputs":
            node = marks[f"{INPUT}{factor.path}"]
            x = node.input_value(0)
            put(node, ops.multiply(x, _of_each_token(factor, x, inputs, head)).output(0))
    paths = {one.path for one in outline.updates} | {one.path for one in outline.factors}
    products = {path: marks[f"{OUTPUT}{path}"].input_value(0) for path in paths}
    results = dict(products)  # each layer's output with its factors
    for path in paths:
        for kind, operate in (("outputs", ops.multiply), ("shift", ops.add)):
            for factor in sorted(outline.factors):
                if factor.path == path and factor.kind == kind:
                    y = results[path]
                    results[path] = operate(y, _of_each_token(factor, y, inputs, head)).output(0)
    read = {  # z
        one: results[one.path]
        if one.reads_output
        else marks[f"{INPUT}{one.source or one.path}"].input_value(0)
        for one in outline.updates
    }
    put_updates = (
        _put_products if operation is None else partial(_put_operations, operation, four_bits, products)
    )
    put_updates(outline, read, results, inputs, head)
    for factor in sorted(outline.factors):
        if factor.kind == "added":
            y = results[factor.path]
            results[factor.path] = ops.add(y, _of_each_token(factor, y, inputs, head)).output(0)
    for path, y in results.items():
        put(marks[f"{OUTPUT}{path}"], y)


def _put_products(
    outline: Outline, read: Mapping[UpdateInput, Any], results: dict[str, Any], inputs: _Inputs, head: str
) -> None:
    for one in outline.ordered:
        own = inputs.flags("own kept" if one.path == head else "own", -1, -1, -1)
        results[one.path] = ops.add(results[one.path], _update(one, read[one], own, inputs)).output(0)


def _put_operations(
    operation: Operation,
    four_bits: FourBits | None,
    products: Mapping[str, Any],
    outline: Outline,
    read: Mapping[UpdateInput, Any],
    results: dict[str, Any],
    inputs: _Inputs,
    head: str,
) -> None:
    """One operation for all layers that read the same input; others could depend on each other's results.

    Products of 4 bits add updates themselves.
    """
    numbers = {one: number for number, one in enumerate(outline.ordered)}
    left = set(numbers)
    if four_bits is not None:
        left -= put_into_products(four_bits, partial(inputs.integers, "plan", -1), numbers, read, results)
    together: dict[object, list[UpdateInput]] = {}
    for one in (one for one in numbers if one in left):
        z = read[one]
        apart = one.reads_output or one.source
        key = (one.path, numbers[one]) if apart else (_name(z), z.get_index())
        together.setdefault(key, []).append(one)
    # Those of layers that are one product are added before it is split, unless one reads its layer's part without
    # them, or has factors, which come first and act on the part.
    whole = {_name(results[one.path]) for one in numbers if one.reads_output}
    whole |= {_name(products[one.path]) for one in numbers if results[one.path] != products[one.path]}
    for updates in together.values():
        targets: list[Any] = []
        places: dict[str, tuple[int, int]] = {}
        splits: dict[int, Any] = {}
        for path in sorted({one.path for one in updates}):
            y = results[path]
            split = y.get_node()
            is_part = split.get_type_name() == "VariadicSplit" and _name(y) not in whole
            target = split.input_value(0) if is_part else y
            if target not in targets:
                targets.append(target)
            number = targets.index(target)
            if is_part:
                splits[number] = split
            before = split.outputs()[: y.get_index()] if is_part else ()
            places[path] = number, sum(one.get_partial_shape()[-1].get_length() for one in before)
        plan = inputs.integers("plan kept" if updates[0].path == head else "plan", -1)
        parts = [
            Part(numbers[one], *places[one.path], one.outputs, one.inputs, one.activation) for one in updates
        ]
        node = operation.node(plan.output(0), read[updates[0]], targets, parts)
        for path, (number, _) in places.items():
            if number in splits:
                splits[number].input(0).replace_source_output(node.output(number))
            else:
                results[path] = node.output(number)


def _name(output: Any) -> str:
    name: str = output.get_node().get_friendly_name()
    return name


def _update(update: UpdateInput, z: Any, own: Any, inputs: _Inputs) -> Any:
    """U φ(D z + e) of z, (windows, W, in); each window has its own ranks (see `windows`)."""
    low = ops.matmul(z, inputs.floats(update.name("down"), -1, -1, update.inputs), False, True)
    if update.has_bias:
        low = ops.add(low, inputs.floats(update.name("bias"), -1, 1, -1))
    low = _ACTIVATIONS[update.activation](low)
    # A choice and not a product: another adapter's result may be infinite.
    low = ops.select(own, low, _number(0.0, np.float32))
    return ops.matmul(low, inputs.floats(update.name("up"), -1, -1, update.outputs), False, False)


def _of_each_token(factor: FactorInput, y: Any, inputs: _Inputs, head: str) -> Any:
    """The factors of each token's slot, in the shape of y: (windows, W, size) or (windows, W, heads, size)."""
    slots = inputs.integers("slots kept" if factor.path == head else "slots", -1, -1)
    table = inputs.floats(factor.name, -1, factor.size)
    rows = ops.gather(table, slots, _number(0, np.int64))
    per_head = y.get_partial_shape().rank.get_length() == 4
    return ops.unsqueeze(rows, _number(2, np.int64)) if per_head else rows


#: The functions φ by the names that terms give them.
_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "": lambda x: x,
    "relu": ops.relu,
    "gelu": lambda x: ops.gelu(x, "erf"),
    "silu": ops.swish,
    "tanh": ops.tanh,
}


def _output(node: Any) -> Any:
    return node if isinstance(node, ov.Output) else node.output(0)


def _number(value: float, kind: Any) -> Any:
    return ops.constant(np.array(value, dtype=kind))


def _none_of(kind: Any) -> Any:
    return ops.constant(np.array([], dtype=kind))
