"""Products with weights of 4 bits, and gates, by operations in C++ (see `sources/four_bits`).

OpenVINO's own products with 4 bits know whole zero points only; see `compression`. These read half of the bytes of
what it is given instead, and are used for any number of rows, so that each row is what it is alone. They are for
processors with VNNI on 512 bits.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from manytune.engine.openvino.huge_pages import HugePages
from manytune.engine.openvino.library import core, node_factory, ops, ov, threads
from manytune.engine.openvino.native import (
    NOTHING,
    Part,
    Weights,
    numbers_of,
    plan_of,
    usable,
)
from manytune.engine.quantized import GROUP

_log = logging.getLogger(__name__)

_SOURCES = Path(__file__).with_name("sources") / "four_bits"
#: Outputs whose weights are together in memory.
LANES = 16
_LARGEST_OFFSET = 4095
#: Of half precision: below, h would lose digits, unless the layer has weights that are much larger.
_SMALLEST_STEP, _SMALL = 2.0**-24, 1e-3
_TOLERANCE = 1e-5  # of the largest value: a hundred times what rounding does
PRODUCT = "ManytuneFourBits"


class FourBits:
    """The operations, which the graphs of a base may have.

    Args:
        factory: Makes their nodes.
    """

    def __init__(self, factory: Any) -> None:
        self._factory = factory
        self._memory = HugePages()

    def product(self, x: Any, weight: Tensor) -> Any:
        """A node that computes x Wᵀ with a rounded weight.

        Args:
            x: An output of a graph, (..., in).
            weight: W, (out, in), for which `has_four_bits` is true.
        """
        packed = ops.constant(self._memory.copy(pack(*rounded(weight))), shared_memory=True)
        return self._factory.create(PRODUCT, [x, packed.output(0)], {"width": len(weight), "is_gated": False})

    def gated_product(self, product: Any) -> Any | None:
        """A node that computes silu(a) · b, where a and b are the halves of a product; None if it can't.

        Args:
            product: From `product`.
        """
        attributes = product.get_attributes()
        if attributes["width"] % (2 * LANES) or attributes["is_gated"]:
            return None
        return self._factory.create(PRODUCT, product.input_values(), _given(attributes) | {"is_gated": True})

    def with_updates(self, product: Any, plan: Any, parts: Sequence[Part]) -> Any:
        """A node that computes a product and adds to it what adapters make of its x.

        Args:
            product: From `product`.
            plan: See `Operation.node`, as for `parts`.
            parts: The updates; their columns and outputs are multiples of `LANES`.
        """
        inputs = [product.input_value(0), product.input_value(1), plan]
        attributes = _given(product.get_attributes()) | {"parts": numbers_of(parts)}
        return self._factory.create(PRODUCT, inputs, attributes)

    def gate(self, inputs: Sequence[Any]) -> Any:
        """A node that computes silu(a) · b.

        Args:
            inputs: Outputs of a graph: a and b, or one whose halves they are.
        """
        return self._factory.create("ManytuneGate", list(inputs), {})


def _given(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes of a product as a new node is given them: lists that aren't empty."""
    found = {name: attributes[name] for name in ("width", "is_gated")}
    parts = [int(one) for one in attributes["parts"]]
    return found | ({"parts": parts} if parts else {})


def has_four_bits(weight: Tensor) -> bool:
    """Whether products with a weight, (out, in), can use its 4-bit form."""
    largest = float(weight.abs().max())
    return weight.shape[1] % GROUP == 0 and _SMALL < largest < torch.finfo(torch.float16).max


def rounded(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q, (out, in), and h and z, (out, in / 32), of W = h/17 · (17 Q + z).

    Args:
        weight: W, (out, in).
    """
    groups = weight.float().unflatten(1, (-1, GROUP))
    low, high = groups.amin(2), groups.amax(2)
    least = 17 * low.abs() / _LARGEST_OFFSET  # h of values that hardly differ
    step = torch.maximum((high - low) / 15, least).clamp(min=_SMALLEST_STEP).half()
    step = torch.where(
        step.float() < least, step * (1 + 2**-10), step
    )  # half precision may have rounded down
    codes = ((groups - low[..., None]) / step.float()[..., None]).round().clamp(0, 15)
    offset = (17 * low / step.float()).round().clamp(-_LARGEST_OFFSET, _LARGEST_OFFSET)
    return codes.flatten(1).to(torch.uint8), step, offset.to(torch.int16)


def pack(codes: Tensor, step: Tensor, offset: Tensor) -> np.ndarray:
    """The bytes that the operation reads, from what `rounded` gives."""
    padding = (0, 0, 0, -len(codes) % LANES)
    q, h, z = (F.pad(one, padding) for one in (codes, step, offset))
    groups = h.shape[1]
    # (blocks, groups, 8 times 4 inputs, lanes, 4 inputs)
    quads = q.view(-1, LANES, groups, 8, 4).permute(0, 2, 3, 1, 4)
    halves = (quads[:, :, :4] | (quads[:, :, 4:] << 4)).reshape(-1, groups, 4 * LANES * 4)
    numbers = [one.view(-1, LANES, groups).transpose(1, 2).contiguous().view(torch.uint8) for one in (h, z)]
    packed: np.ndarray = torch.cat((halves, *numbers), dim=2).flatten().numpy()
    return packed


def four_bits() -> FourBits | None:
    """The operations, for one base; None where they can't be had, and the log says why."""
    factory = _factory()
    return None if factory is None else FourBits(factory)


@functools.cache
def _factory() -> Any | None:
    """Compiled unless that was done before, and checked."""
    if not torch.cpu._is_vnni_supported() or not torch.cpu._is_avx512_supported():
        _log.info(
            "runtime='openvino', weights='int4': a weight takes a byte, as this processor has no avx512_vnni."
        )
        return None
    found, reason = usable(_SOURCES, node_factory, _wrong)
    if found is None:
        _log.warning(
            "runtime='openvino', weights='int4': a weight takes a byte, which makes steps of few rows slower, since "
            "products with 4 bits in C++ can't be used: %s.",
            reason,
        )
    return found


def _wrong(factory: Any) -> float | None:
    found = difference(FourBits(factory))
    return None if found <= _TOLERANCE else found


def difference(operations: FourBits) -> float:
    """How far the operations are from their formulas, as a share of the largest value."""
    draw = torch.Generator().manual_seed(0)
    worst = 0.0
    for rows, outputs in ((1, 64), (11, 96), (19, 41)):
        x = torch.randn(rows, 3 * GROUP, generator=draw)
        weight = torch.randn(outputs, x.shape[1], generator=draw)
        codes, step, offset = rounded(weight)
        factor = (17 * codes.double().unflatten(1, (-1, GROUP)) + offset[..., None]) / 17
        scale = x.view(rows, -1, GROUP).abs().amax(2, keepdim=True) / 127
        near = (x.view(rows, -1, GROUP) * (1 / scale)).round() * scale.double()
        y = near.flatten(1) @ (factor * step.double()[..., None]).flatten(1).T
        gate = F.silu(y[:, : outputs // 2]) * y[:, outputs // 2 : outputs // 2 * 2]
        expected = [y, *([gate] * (2 if outputs % 32 == 0 else 0))]
        worst = max(
            worst,
            *(
                float((one - other).abs().max() / other.abs().max())
                for one, other in zip(applied(operations, x, weight), expected, strict=True)
            ),
        )
    return max(worst, _difference_of_updates(operations))


def _difference_of_updates(operations: FourBits) -> float:
    """The same of a product that adds an update of two adapters to a part of its outputs."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(11, 3 * GROUP, generator=draw)
    weight = torch.randn(96, x.shape[1], generator=draw)
    tokens = [0, 1, 2, 1, 1, 1, 1, 1, 0, 2, 2]
    own = []
    for rank in (8, 3):
        down, up = (torch.randn(rank, size, generator=draw).bfloat16() for size in (x.shape[1], 64))
        own.append(Weights(down, up, None))
    entries = np.array([[*(one.entry for one in own), NOTHING]], np.int64)
    part = Part(0, 0, 16, 64, x.shape[1], "")
    expected = applied(operations, x, weight)[0].double()
    for row, adapter in enumerate(tokens):
        if adapter < len(own):
            one = own[adapter]
            expected[row, 16:80] += (one.down.double() @ x[row].double()) @ one.up.double()
    found = applied(operations, x, weight, plan_of(tokens, entries, torch.bfloat16), [part])[0]
    return float((found - expected).abs().max() / expected.abs().max())


def applied(
    operations: FourBits, x: Tensor, weight: Tensor, plan: Tensor | None = None, parts: Sequence[Part] = ()
) -> list[Tensor]:
    """What a graph of their own makes of x: the product and, if its halves are whole blocks, its gate in both ways.

    Args:
        operations: The operations.
        x: (rows, in).
        weight: (out, in).
        plan: Of updates, if there are any; see `native`.
        parts: The updates.
    """
    given = [ops.parameter([-1, x.shape[1]], ov.Type.f32)]
    product = operations.product(given[0].output(0), weight)
    tensors = [x.contiguous()]
    if plan is not None:
        given.append(ops.parameter([-1], ov.Type.i32))
        product = operations.with_updates(product, given[1].output(0), parts)
        tensors.append(plan)
    results = [product]
    if (joined := operations.gated_product(product)) is not None:
        results += [joined, operations.gate([product.output(0)])]
    settings = {"INFERENCE_PRECISION_HINT": "f32", **threads()}
    model = ov.Model([one.output(0) for one in results], given)
    request = core().compile_model(model, "CPU", settings).create_infer_request()
    for place, tensor in enumerate(tensors):
        request.set_input_tensor(place, ov.Tensor(tensor.numpy(), shared_memory=True))
    request.start_async()
    request.wait()
    return [torch.from_numpy(request.get_output_tensor(place).data.copy()) for place in range(len(results))]
