"""Validation of an untrusted adapter before it reaches the engine.

Its options are compared with the base, its tensors' names, shapes and dtypes, and then their values. Its files were
examined before; see `manytune.examination`.
"""

from __future__ import annotations

import copy
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn

from manytune.errors import ConfigError, StoreError
from manytune.examination.expressions import LONGEST_PATTERN
from manytune.methods.config import PeftConfig
from manytune.methods.registry import method_of
from manytune.methods.tuners.embeddings import base_tables, plain_name
from manytune.methods.tuners.patterns import has_choices, is_linear
from manytune.store.resident import ResidentAdapter

_PART = 16384
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MOST_PATTERNS = 64
_MOST_NAMES = 100_000


#: Shapes of tensors by their names in an adapter's file.
_Shapes = Mapping[str, tuple[int, ...]]


class MetaBase:
    """A base on the meta device, without values, on which an adapter's options determine its tensors' names and shapes.

    Args:
        model: The base.
    """

    def __init__(self, model: nn.Module) -> None:
        empty: dict[int, Any] = {}
        for tensor in chain(model.parameters(), model.buffers()):
            bare = tensor.detach().to("meta")
            is_parameter = isinstance(tensor, nn.Parameter)
            empty[id(tensor)] = nn.Parameter(bare, requires_grad=False) if is_parameter else bare
        self._model = copy.deepcopy(model, empty)
        self._known: dict[str, tuple[_Shapes, _Shapes]] = {}

    def check(self, adapter: ResidentAdapter) -> None:
        """Check that an adapter has exactly the tensors that its options require on the base, with finite values.

        Not thread-safe.

        Raises:
            ConfigError: An option can't be used.
            StoreError: A tensor is missing, unexpected, or doesn't fit the base.
        """
        self.check_shapes(adapter)
        for name, tensor in adapter.tensors.items():
            # Parts below the size from which torch uses several threads, which the engine needs.
            if not all(part.float().isfinite().all() for part in tensor.flatten().split(_PART)):
                raise StoreError(f"adapter {adapter.digest[:12]}: {name} has values that are NaN or Inf.")

    def check_shapes(self, adapter: ResidentAdapter) -> None:
        """The same without a look at the values.

        Not thread-safe.

        Raises:
            ConfigError: An option can't be used.
            StoreError: A tensor is missing, unexpected, or doesn't fit the base.
        """
        check_options(adapter.config)
        who = f"adapter {adapter.digest[:12]}"
        expected, tables = self._shapes(adapter.config)
        found = adapter.tensors
        for what, names in (
            ("is missing", set(expected) - set(found)),
            ("is unexpected", {n for n in set(found) - set(expected) if plain_name(n) not in tables}),
        ):
            if names:
                raise StoreError(
                    f"{who}: by its options, tensor {min(names)} {what}"
                    + (f", and so are {len(names) - 1} more." if len(names) > 1 else ".")
                    + " Was adapter_config.json changed, or was it trained on another base?"
                )
        for name, tensor in found.items():
            shape = expected[name] if name in expected else tables[plain_name(name)]
            if tuple(tensor.shape) != shape:
                raise StoreError(
                    f"{who}: {name} has shape {tuple(tensor.shape)}; its options and the base require {shape}."
                )
            if tensor.dtype not in _FLOATS:
                raise StoreError(f"{who}: {name} holds {tensor.dtype}; expected a floating-point type.")

    def _shapes(self, config: PeftConfig) -> tuple[_Shapes, _Shapes]:
        key = config.to_json()
        if key not in self._known:
            if len(self._known) >= 32:
                self._known.clear()
            self._known[key] = self._required_shapes(copy.deepcopy(config))
        return self._known[key]

    def _required_shapes(self, config: PeftConfig) -> tuple[_Shapes, _Shapes]:
        """The shapes of an adapter's own tensors, and of the base's tables, which a file may hold as well."""
        config = config.for_loading()
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuner = method_of(config).tuner(self._model, config, "default", low_cpu_mem_usage=True)
            try:
                own = {
                    f"{tuner.file_prefix}{name}": tensor for name, tensor in tuner.state("default").items()
                }
                prefix = f"{tuner.file_prefix}{tuner.parameter_prefix}"
                tables = {f"{prefix}{name}": table for name, table in base_tables(tuner.model).items()}
                return _shapes_of(own), _shapes_of(tables)
            finally:
                if tuner.in_layers:
                    tuner.unload()


def check_options(config: PeftConfig) -> None:
    """Refuse numbers that aren't finite, and expressions or lists that would take long to compare with the base.

    Raises:
        ConfigError: There is one.
    """
    texts = config.texts
    patterns, names = 0, 0
    for where, value in _values(json.loads(config.to_json())):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}={value}: expected a finite number.")
        if not isinstance(value, str) or not texts.isdisjoint(where.split(".")):
            continue
        names += 1
        patterns += has_choices(value)
        if len(value) > LONGEST_PATTERN or not _is_usable(value):
            raise ConfigError(
                f"{where}={value[:60]!r}: a server takes expressions of up to {LONGEST_PATTERN:,} characters that RE2 "
                "takes: no backreferences, no looking around. Save the adapter with a list of modules."
            )
    if patterns > _MOST_PATTERNS or names > _MOST_NAMES:
        raise ConfigError(
            f"the options have {patterns:,} expressions with repetitions or alternatives, and {names:,} names in all; "
            f"a server takes up to {_MOST_PATTERNS} and {_MOST_NAMES:,}. Save the adapter with a list of modules."
        )


def _is_usable(pattern: str) -> bool:
    try:
        return is_linear(pattern)
    except (re.error, RecursionError, OverflowError):
        return True  # a name of a list, which isn't read as an expression; an expression is refused where it is read


def _shapes_of(tensors: Mapping[str, torch.Tensor]) -> _Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _values(content: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """All texts and numbers in the options, keys included: those of patterns are expressions as well."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield where or key, key
            yield from _values(value, f"{where}.{key}" if where else key)
    elif isinstance(content, list):
        for value in content:
            yield from _values(value, where)
    else:
        yield where, content
