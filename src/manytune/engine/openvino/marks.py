"""Marks in a converted graph: places that are found again by name after the conversion.

A mark is a node of its own type around a tensor. The converter neither looks into it nor moves anything across it, so
that whatever is put in its place acts at the very point of the torch model where the mark was set. A graph with marks
can be cloned, but not compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from manytune.engine.openvino.library import ov, pytorch_frontend

_PREFIX = "mark "


def mark(label: str, *tensors: Tensor) -> Tensor:
    """The first of these tensors, with a mark around all of them in the traced graph.

    Args:
        label: What the mark is found by; each is set once.
        tensors: What goes into it.
    """
    extension = pytorch_frontend.inlined_extension(_mark_type(label))
    result: Tensor = extension(lambda first, *rest: first.clone())(*tensors)
    return result


def marks_in(graph: Any) -> dict[str, Any]:
    """The marks of a graph by their labels."""
    found = ((label_of(node), node) for node in graph.get_ordered_ops())
    return {label: node for label, node in found if label is not None}


def label_of(node: Any) -> str | None:
    """The label of a mark; None for any other node."""
    name: str = node.get_type_name()
    return name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else None


def put(node: Any, output: Any) -> None:
    """Let whatever reads a node, such as a mark, read this output in its place."""
    for reader in node.output(0).get_target_inputs():
        reader.replace_source_output(output)


def _mark_type(label: str) -> type:
    def make(self: Any, *inputs: Any, **attributes: Any) -> None:
        # A clone is made of a list of inputs.
        given: Sequence[Any] = inputs[0] if len(inputs) == 1 and isinstance(inputs[0], list) else inputs
        ov.Op.__init__(self, self, list(given))
        self.constructor_validate_and_infer_types()

    def infer(self: Any) -> None:
        self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

    return type(f"{_PREFIX}{label}", (ov.Op,), {"__init__": make, "validate_and_infer_types": infer})
