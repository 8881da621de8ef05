"""Compiled graphs: the base's alone, and one with what the adapters so far do in it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from manytune.engine.openvino.compression import compress
from manytune.engine.openvino.conversion import convert, embedding_size
from manytune.engine.openvino.four_bits import four_bits
from manytune.engine.openvino.graph import build
from manytune.engine.openvino.library import core, ov, threads
from manytune.engine.openvino.native import Operation
from manytune.engine.openvino.outline import Outline
from manytune.engine.openvino.paged_cache import PagedCache
from manytune.engine.quantized import GROUP
from manytune.engine.weights import Rounding
from manytune.errors import ConfigError

_log = logging.getLogger(__name__)


class Program:
    """A compiled graph with its inputs.

    Args:
        compiled: The graph.
        outline: What adapters do in it.
        cache: Keys and values, which it reads and writes where they are.
    """

    def __init__(self, compiled: Any, outline: Outline, cache: PagedCache) -> None:
        self.outline = outline
        #: Which of the adapters' tensors it has.
        self.tables: object = None
        self._request = compiled.create_infer_request()
        self._names = {name for one in compiled.inputs for name in one.get_names()}
        self._given: dict[str, Any] = {}
        self._own: dict[str, np.ndarray] = {}  # of what each run gives
        for layer in range(cache.layers):
            keys, values = cache.layer(layer)
            self.give({f"keys {layer}": keys, f"values {layer}": values})

    def give(self, inputs: Mapping[str, Tensor]) -> None:
        """Set inputs, without copying; others stay as they were, and those that the graph doesn't have are left out."""
        for name, value in inputs.items():
            if name in self._names:
                self._given[name] = shared = _shared(value)
                self._request.set_tensor(name, shared)

    def run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The graph's logits; they are valid until it runs again."""
        for name, value in inputs.items():
            own = self._own.get(name)
            if own is not None and own.shape == value.shape:
                own[...] = value.numpy()  # a few numbers; to set another tensor takes ten times as long
            else:
                self._own[name] = value.numpy().copy()
                self.give({name: torch.from_numpy(self._own[name])})
        # Not `infer`, which returns as if nothing had happened where a node raises.
        self._request.start_async()
        self._request.wait()
        return torch.from_numpy(self._request.get_output_tensor(0).data)


def settings(rounding: Rounding | None) -> dict[str, Any]:
    """What graphs are compiled with.

    Args:
        rounding: What weights are rounded to; None for the model's own numbers.
    """
    precision = "bf16" if rounding == "bf16" else "f32"
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "KV_CACHE_PRECISION": precision,
        **threads(),
        # See `compression`.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP if rounding in (8, 4) else 0,
        "PERFORMANCE_HINT": "LATENCY",
    }


def _type_of(dtype: torch.dtype) -> Any:
    return ov.Type.bf16 if dtype == torch.bfloat16 else ov.Type.f32


def _shared(value: Tensor) -> Any:
    """A tensor of OpenVINO's over the same memory."""
    if value.dtype != torch.bfloat16:
        return ov.Tensor(value.numpy(), shared_memory=True)
    return ov.Tensor(value.view(torch.int16).numpy(), ov.Shape(list(value.shape)), ov.Type.bf16)


class Programs:
    """The compiled graphs of a base.

    Args:
        model: The base.
        cache: Keys and values.
        rounding: What weights are rounded to; None for the model's own numbers.
        operation: Adds adapters' updates; None for products.

    Raises:
        ConfigError: OpenVINO can't convert or compile the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: PagedCache,
        rounding: Rounding | None,
        operation: Operation | None = None,
    ) -> None:
        self._converted = convert(model)
        self.layers = self._converted.layers
        head = model.get_output_embeddings()
        self._head = next((path for path in self.layers if model.get_submodule(path) is head), "")
        if not self._head:
            raise ConfigError(f"the output head of {type(model).__name__} isn't a linear layer")
        self._hidden = embedding_size(model)
        self._cache = cache
        self._operation = operation
        self._rounding = rounding
        self._four_bits = four_bits() if rounding == 4 else None
        if rounding is not None and rounding != "bf16":
            self._converted = compress(self._converted, rounding, head=self._head, operations=self._four_bits)
        #: Layers that are computed as one product with others, so that none has an input of its own.
        self.shared = self._converted.shared.keys()
        try:
            self._plain = self._compiled(Outline())
        except RuntimeError as error:  # OpenVINO's
            lines = str(error).strip().splitlines()
            raise ConfigError(f"OpenVINO can't compile {type(model).__name__}: {lines[-1]}") from error
        self._joint = self._plain

    def program(self, outline: Outline) -> Program:
        """A program that computes what is in an outline: the one for no adapters, or the one for all so far."""
        if outline <= self._plain.outline:
            return self._plain
        if not outline <= self._joint.outline:
            self._joint = self._compiled(outline | self._joint.outline)
        return self._joint

    def _compiled(self, outline: Outline) -> Program:
        start = time.perf_counter()
        graph = build(
            self._converted,
            outline,
            head=self._head,
            cache_type=_type_of(self._cache.dtype),
            operation=self._operation,
            four_bits=self._four_bits,
        )
        # Several windows are needed by products with adapters alone. A fixed number spares the graph computing shapes
        # from shapes, for which a step stops in each layer.
        windows = 1 if self._operation is not None or outline == Outline() else -1
        graph.reshape({"embeddings": [windows, -1, self._hidden], "positions": [windows, -1], "kept": [-1]})
        compiled = core().compile_model(graph, "CPU", settings(self._rounding))
        what = f"{len(outline.updates)} updates and {len(outline.factors)} factors of adapters"
        _log.info("OpenVINO compiled the base with %s in %.1f s", what, time.perf_counter() - start)
        return Program(compiled, outline, self._cache)
