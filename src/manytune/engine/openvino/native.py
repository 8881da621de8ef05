"""The operation in C++ that adds adapters' updates to layers, each token with its own ranks.

It is compiled where it runs, as `manytune.kernels` is, against the headers and libraries in OpenVINO's package, and
runs in the graph's own threads. Formula and inputs: `sources/ranks.h`.
"""

from __future__ import annotations

import functools
import logging
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from manytune.engine.openvino.library import core, node_factory, ops, ov, threads
from manytune.kernels.build import compiled, find_compiler, first_error

_log = logging.getLogger(__name__)
_Made = TypeVar("_Made")

_SOURCES = Path(__file__).with_name("sources")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-w", "-D_GLIBCXX_USE_CXX11_ABI=1")
#: Tokens of a block: one thread's work.
_BLOCK = 16
_TOLERANCE = 1e-4  # of the largest value: a hundred times what rounding does
#: φ as the operation knows them.
_ACTIVATIONS = {"": 0, "relu": 1, "gelu": 2, "silu": 3, "tanh": 4}


@dataclass(frozen=True)
class Part:
    """An update of some layer in one operation.

    Attributes:
        number: Of the update in the plan.
        target: Which of the operation's y it adds to.
        column: Where in y.
        outputs: To so many columns.
        inputs: Size of x.
        activation: Name of φ; empty for the identity.
    """

    number: int
    target: int
    column: int
    outputs: int
    inputs: int
    activation: str


@dataclass(frozen=True)
class Weights:
    """An adapter's weights for one update, contiguous.

    Attributes:
        down: D, (rank, in), in float32 or bfloat16.
        up: U, (rank, out), in the same.
        bias: e, (rank,), in float32, or None.
    """

    down: Tensor
    up: Tensor
    bias: Tensor | None

    @property
    def entry(self) -> tuple[int, int, int, int]:
        """What a plan has of it."""
        bias = 0 if self.bias is None else self.bias.data_ptr()
        return self.down.data_ptr(), self.up.data_ptr(), bias, len(self.down)


#: An adapter that has no such update.
NOTHING = (0, 0, 0, 0)


class Operation:
    """The operation, which graphs may have.

    Args:
        library: Path of the compiled library.
    """

    def __init__(self, library: Path) -> None:
        self._factory = node_factory(library)

    def node(self, plan: Any, x: Any, targets: Sequence[Any], parts: Sequence[Part]) -> Any:
        """A node that adds to some y what adapters make of x.

        Args:
            plan: An output of a graph: integers, as `plan_of` makes them.
            x: The input that the updates read, (..., tokens, in).
            targets: The y, (..., tokens, out) each.
            parts: The updates.

        Returns:
            A node with an output for each y.
        """
        return self._factory.create("ManytuneUpdates", [plan, x, *targets], {"parts": numbers_of(parts)})


def numbers_of(parts: Sequence[Part]) -> list[int]:
    """Updates as operations in C++ know them."""
    order = sorted(parts, key=lambda one: (one.target, one.column, one.number))
    return [
        number
        for one in order
        for number in (
            one.number,
            one.target,
            one.column,
            one.outputs,
            one.inputs,
            _ACTIVATIONS[one.activation],
        )
    ]


def plan_of(tokens: Sequence[int], weights: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
    """What the tokens of a forward read: the operation's first input.

    Args:
        tokens: The adapter of each token, by its place in `weights`.
        weights: Of each update and adapter `Weights.entry`, (updates, adapters, 4). The tensors have to be there while
            a graph runs with the plan.
        dtype: Of D and U.
    """
    order = np.argsort(np.array(tokens), kind="stable")
    ends: list[int] = []
    adapters: list[int] = []
    for adapter, count in zip(*np.unique(np.array(tokens), return_counts=True), strict=True):
        begin = ends[-1] if ends else 0
        own = [*range(begin + _BLOCK, begin + count, _BLOCK), begin + count]
        ends += own
        adapters += [adapter] * len(own)
    header = (len(ends), len(tokens), *weights.shape[:2], dtype.itemsize)
    numbers = np.concatenate([header, ends, adapters, order, tokens, weights.ravel()], dtype=np.int64)
    return torch.from_numpy(numbers.view(np.int32))  # halves: OpenVINO's graphs know no 64 bits


@functools.cache
def operation() -> Operation | None:
    """The operation, compiled unless that was done before; None where it can't be had, and the log says why."""
    made = usable(_SOURCES, Operation, difference)
    found, reason = made
    if found is None:
        _log.warning(
            "runtime='openvino': adapters' updates are computed by products for several adapters at once, which is "
            "slower, since their operation in C++ can't be used: %s.",
            reason,
        )
    return found


def usable(
    sources: Path, load: Callable[[Path], _Made], wrong: Callable[[_Made], float | None]
) -> tuple[_Made | None, str]:
    """What is made of operations in C++, compiled unless that was done before; or None, and why it can't be had.

    Args:
        sources: A directory of sources.
        load: Loads the compiled library.
        wrong: Compares with the formulas: the error as a share of the largest value, None if that is due to rounding.
    """
    compiler, reason = find_compiler()
    if compiler is None:
        return None, reason
    try:
        found = load(extension_library(compiler, sources))
        error = wrong(found)
    except (OSError, subprocess.SubprocessError) as failed:
        return None, first_error(failed)
    except RuntimeError as failed:  # OpenVINO's
        return None, str(failed).strip().splitlines()[-1]
    if error is not None:
        return (
            None,
            f"what {compiler} made of it is {error:.1e} of the largest value away from torch's result",
        )
    return found, ""


def extension_library(compiler: str, sources: Path) -> Path:
    """A library of operations for OpenVINO, compiled unless that was done before.

    Args:
        compiler: The program.
        sources: A directory of sources.

    Raises:
        OSError: The compiler, the cache or OpenVINO's headers can't be used.
        subprocess.SubprocessError: The compiler fails.
    """
    package = Path(str(ov.__file__)).parent
    libraries = [
        found
        for name in ("libopenvino.so.*", "libtbb.so.*")
        for found in sorted((package / "libs").glob(name))[:1]
    ]
    if len(libraries) < 2 or not (package / "include").is_dir():
        raise OSError("this package of OpenVINO is without its headers and libraries; install it from PyPI")
    version = f"-DOPENVINO_PACKAGE={ov.__version__.split('-')[0]}"
    flags = (*_FLAGS, version, f"-I{package / 'include'}")
    return compiled(compiler, flags, sources, tuple(map(str, libraries)), headers=(_SOURCES,))


def applied(
    operation: Operation, parts: Sequence[Part], plan: Tensor, x: Tensor, ys: Sequence[Tensor]
) -> list[Tensor]:
    """What the operation makes of some y in a graph of its own; see `Operation.node`."""
    shapes = [[-1] * (one.ndim - 1) + [one.shape[-1]] for one in (x, *ys)]
    given = [ops.parameter([-1], ov.Type.i32), *(ops.parameter(shape, ov.Type.f32) for shape in shapes)]
    outputs = [one.output(0) for one in given]
    node = operation.node(outputs[0], outputs[1], outputs[2:], parts)
    settings = {"INFERENCE_PRECISION_HINT": "f32", **threads()}
    request = core().compile_model(ov.Model(node.outputs(), given), "CPU", settings).create_infer_request()
    for place, value in enumerate((plan, x, *ys)):
        request.set_input_tensor(place, ov.Tensor(value.numpy(), shared_memory=True))
    request.start_async()
    request.wait()
    return [torch.from_numpy(request.get_output_tensor(place).data.copy()) for place in range(len(ys))]


def difference(operation: Operation) -> float | None:
    """How far the operation is from the formula, as a share of the largest value; None if that is due to rounding."""
    return next(filter(None, (_difference(operation, one) for one in (torch.float32, torch.bfloat16))), None)


def _difference(operation: Operation, dtype: torch.dtype) -> float | None:
    """Two updates of two layers, one with φ and e, and tokens of three adapters, of which one has nothing."""
    draw = torch.Generator().manual_seed(0)
    sizes, inputs, tokens = (40, 24), 37, [0, 1, 2, *[1] * 20, 0, 0]
    x = torch.randn(len(tokens), inputs, generator=draw)
    ys = [torch.randn(len(tokens), size, generator=draw) for size in sizes]
    weights = [
        [_drawn(rank, inputs, size, draw, number, dtype) for number, size in enumerate(sizes)]
        for rank in (11, 3)
    ]
    entries = np.array(
        [[*(own[number].entry for own in weights), NOTHING] for number in range(2)], dtype=np.int64
    )
    expected = [y.double() for y in ys]
    for token, adapter in enumerate(tokens):
        for number, own in enumerate(weights[adapter] if adapter < len(weights) else ()):
            low = own.down.double() @ x[token].double()
            low = low if own.bias is None else torch.tanh(low + own.bias)
            expected[number][token] += low @ own.up.double()
    parts = [
        Part(number, number, 0, size, inputs, "tanh" if number else "") for number, size in enumerate(sizes)
    ]
    found = applied(operation, parts, plan_of(tokens, entries, dtype), x[None], [y[None] for y in ys])
    wrong = max(
        float((one[0] - other).abs().max() / other.abs().max())
        for one, other in zip(found, expected, strict=True)
    )
    return None if wrong <= _TOLERANCE else wrong


def _drawn(
    rank: int, inputs: int, outputs: int, draw: torch.Generator, number: int, dtype: torch.dtype
) -> Weights:
    down, up, bias = (
        torch.randn(*shape, generator=draw) for shape in ((rank, inputs), (rank, outputs), (rank,))
    )
    return Weights(down.to(dtype), up.to(dtype), bias if number else None)
