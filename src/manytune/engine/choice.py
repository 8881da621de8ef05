"""Which form of the base's weights and which runtime to take, where nobody says.

Weights whose file had 4 bits are such that 4 bits can express them, whatever type they have now: rounding them changes
nothing, and they get 4 bits again if products with these are faster here. All others keep their own numbers: those of
bfloat16 are multiplied in it where the processor can, and else in float32.

Each form but the model's own layers keeps copies of the weights. Those of a large model may be more than the machine
has room for, and then a form with smaller ones is taken, or none.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from manytune.engine.bfloat16 import multiplies_bfloat16
from manytune.engine.copies import copied_bytes
from manytune.engine.openvino.availability import openvino_obstacle
from manytune.engine.options import Runtime
from manytune.engine.product_times import product_seconds
from manytune.engine.quantized import GROUP, int4_error
from manytune.engine.weights import Weights
from manytune.free_memory import free_memory
from manytune.methods.tuners.quantized_layers import packed_parameters

Auto = Literal["auto"]
Measure = Callable[[PreTrainedModel, Runtime, Sequence[Weights]], Mapping[Weights, float]]
"""From a model, a runtime and forms to the seconds of a few layers' products in each form."""

#: The largest change of a weight by rounding, as a share of its norm, that is taken for none: float32's own rounding is
#: far below it, and weights that never had 4 bits change by 5% or more.
_NOTHING = 1e-3
_AS_THEY_ARE = (
    "4 bits express its weights as they are (activations are rounded; weights='plain' rounds nothing)"
)
#: Rows of each layer that are looked at.
_ROWS = 16
#: 4 bits are taken if their products take less than this share of the time.
_WORTH = 0.95

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A form and a runtime.

    Attributes:
        weights: How the base's weights are kept.
        runtime: What computes the forwards.
    """

    weights: Weights
    runtime: Runtime


def choose(
    model: PreTrainedModel,
    weights: Weights | Auto = "auto",
    runtime: Runtime | Auto = "auto",
    *,
    measure: Measure | None = product_seconds,
    by_memory: bool = True,
) -> Choice:
    """Choose what is left open, and log what it is and why.

    OpenVINO is taken where it can run the model. `"int4"` is taken on a CPU for weights that 4 bits express,
    unless its products aren't faster here; all other bases stay as they are, which is `"reordered"`, or `"bf16"` for
    one in bfloat16 that OpenVINO runs. Where copies of the weights would take more than half of the memory that is
    free, it is torch, and if its copies would, too, `"plain"`.

    Args:
        model: The base, with nothing attached.
        weights: A form, or `"auto"`.
        runtime: A runtime, or `"auto"`.
        measure: What times the products, which takes about a second; None to go by the weights alone, as for several
            servers that must answer alike.
        by_memory: Whether free memory decides, too; not for several servers that must answer alike.
    """
    if weights != "auto" and runtime != "auto":
        return Choice(weights, runtime)
    chosen, why_runtime = (runtime, "") if runtime != "auto" else _runtime(model)
    form, why_form = (weights, "") if weights != "auto" else _weights(model, chosen, measure)
    reasons = [reason for reason in (why_runtime, why_form) if reason]
    free = free_memory() if by_memory and model.device.type == "cpu" else None
    if runtime == "auto" and chosen == "openvino" and (much := _too_much(model, form, chosen, free)):
        chosen, reasons = "torch", [much]
        if weights == "auto":
            form, why_form = _weights(model, chosen, measure)
            reasons.append(why_form)
    if weights == "auto" and chosen == "torch" and (much := _too_much(model, form, chosen, free)):
        form, reasons = "plain", [*reasons, much]
    _log.info("the base runs with runtime=%r and weights=%r: %s", chosen, form, "; ".join(reasons))
    return Choice(form, chosen)


def _too_much(model: PreTrainedModel, weights: Weights, runtime: Runtime, free: int | None) -> str:
    """That the copies of the weights would take more than half of the memory that is free; empty if they don't."""
    needed = 0 if packed_parameters(model) else copied_bytes(model, weights, runtime)
    if free is None or 2 * needed <= free:
        return ""
    name = "OpenVINO's" if runtime == "openvino" else "torch's"
    return (
        f"{name} copies of the weights would take {needed / 2**20:,.0f} MiB with weights={weights!r}, and "
        f"{free / 2**20:,.0f} MiB are free"
    )


def _runtime(model: PreTrainedModel) -> tuple[Runtime, str]:
    reason = (
        "the model has an encoder, and OpenVINO runs decoders alone here"
        if model.config.is_encoder_decoder
        else openvino_obstacle(model)
    )
    return ("openvino", "OpenVINO can run it") if reason is None else ("torch", reason)


def _weights(model: PreTrainedModel, runtime: Runtime, measure: Measure | None) -> tuple[Weights, str]:
    if model.device.type != "cpu":
        return "reordered", f"weights keep their own precision on {model.device.type}"
    if packed_parameters(model):
        return "reordered", "its weights are packed already"
    obstacle = four_bit_obstacle(model)
    if obstacle is not None:
        # torch multiplies in the weights' own precision anyway, OpenVINO in the one that it is asked for.
        in_bfloat16 = runtime == "openvino" and model.dtype == torch.bfloat16 and multiplies_bfloat16()
        return "bf16" if in_bfloat16 else "reordered", f"its weights keep their own precision, as {obstacle}"
    if measure is None:
        return "int4", _AS_THEY_ARE
    seconds = measure(model, runtime, ("reordered", "int4"))
    share = seconds["int4"] / seconds["reordered"]
    measured = f"{_AS_THEY_ARE}; products take {share:.2f} of the time"
    return ("int4" if share < _WORTH else "reordered"), measured


def four_bit_obstacle(model: nn.Module) -> str | None:
    """Why rounding a model's layers to 4 bits would change them, as a clause; None if it wouldn't.

    The output head isn't looked at: it keeps 8 bits.

    Args:
        model: A transformers model on a CPU.
    """
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    layers = [
        (path, module)
        for path, module in model.named_modules()
        if type(module) is nn.Linear and module is not head
    ]
    if not layers:
        return "it has no plain linear layers"
    for path, module in layers:  # of all of them first, as it takes no time
        if module.in_features % GROUP:
            return f"the {module.in_features} inputs of {path} don't divide into groups of {GROUP}"
    for path, module in layers:
        step = math.ceil(module.out_features / _ROWS)
        error = int4_error(module.weight.detach()[::step])
        if not error <= _NOTHING:
            return f"4 bits would change {path} by {error:.1%}"
    return None
