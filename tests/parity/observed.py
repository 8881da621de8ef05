"""What a script observes of a library, and where two libraries differ in it."""

from __future__ import annotations

import builtins
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_BUILT_IN = {e for e in vars(builtins).values() if isinstance(e, type) and issubclass(e, Exception)}
_VAGUE = {Exception}


@dataclass(frozen=True)
class Raised:
    """An error, as `except` clauses know it.

    Attributes:
        kinds: The built-in classes that it is an instance of, nearest first.
        text: Its class and message.
    """

    kinds: tuple[type, ...]
    text: str

    @classmethod
    def of(cls, error: Exception) -> Raised:
        kinds = tuple(kind for kind in type(error).__mro__ if kind in _BUILT_IN - _VAGUE)
        return cls(kinds, f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Attempt:
    """What a call gave, and what the library said meanwhile.

    Attributes:
        value: The result, or what it raised.
        warned: What users were warned of; not what will be deprecated.
    """

    value: Any
    warned: tuple[str, ...]


@dataclass
class Seen:
    """Observations by name, in order."""

    values: dict[str, Any] = field(default_factory=dict)

    def note(self, name: str, value: Any) -> None:
        """Keep a value. Tensors are kept as they are now."""
        assert name not in self.values, f"{name} is noted twice"
        self.values[name] = _kept(value)

    def attempt(self, name: str, call: Callable[[], Any]) -> Any:
        """Keep what a call gives, or that it raises; gives back the result, or None.

        A library that says nothing where the other one warns or raises differs from it.
        """
        assert name not in self.values, f"{name} is noted twice"
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                value = result = call()
            except Exception as error:
                value, result = Raised.of(error), None
        warned = tuple(str(w.message) for w in said if issubclass(w.category, (UserWarning, RuntimeWarning)))
        self.values[name] = Attempt(_kept(value), warned)
        return result


def _kept(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _kept(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_kept(item) for item in value]
    # A result that is no plain value (a model, say) counts as "no error".
    plain = (str, int, float, bool, type(None), Raised, set, frozenset, torch.dtype)
    return value if isinstance(value, plain) else "a result"


def differences(mine: Seen, theirs: Seen, tolerance: float) -> dict[str, str]:
    """Names of the observations that differ, with how."""
    assert list(mine.values) == list(theirs.values) or set(mine.values) ^ set(theirs.values)
    found = {}
    for name in dict.fromkeys([*theirs.values, *mine.values]):
        if name not in mine.values or name not in theirs.values:
            found[name] = f"only {'HF PEFT' if name in theirs.values else 'manytune'} got there"
            continue
        difference = _differ(mine.values[name], theirs.values[name], tolerance)
        if difference:
            found[name] = difference
    return found


def _differ(mine: Any, theirs: Any, tolerance: float) -> str:
    """How two values differ; empty if they don't."""
    if isinstance(theirs, Attempt):
        difference = _differ(mine.value, theirs.value, tolerance)
        if not difference and theirs.warned and not mine.warned and not isinstance(mine.value, Raised):
            return f"HF PEFT warns, manytune says nothing: {theirs.warned[0]}"
        return difference
    if isinstance(mine, Raised) or isinstance(theirs, Raised):
        return _errors_differ(mine, theirs)
    if isinstance(theirs, Tensor) and isinstance(mine, Tensor):
        return _tensors_differ(mine, theirs, tolerance)
    if isinstance(theirs, dict) and isinstance(mine, dict):
        if mine.keys() != theirs.keys():
            return f"only here {sorted(mine.keys() - theirs.keys())}, only there {sorted(theirs.keys() - mine.keys())}"
        inside = {key: _differ(mine[key], theirs[key], tolerance) for key in theirs}
        return "; ".join(f"{key}: {difference}" for key, difference in inside.items() if difference)
    if isinstance(theirs, list) and isinstance(mine, list) and len(mine) == len(theirs):
        inside = {n: _differ(a, b, tolerance) for n, (a, b) in enumerate(zip(mine, theirs, strict=True))}
        return "; ".join(f"{n}: {difference}" for n, difference in inside.items() if difference)
    if isinstance(theirs, float) and isinstance(mine, float):
        close = math.isclose(mine, theirs, rel_tol=tolerance, abs_tol=tolerance)
        return "" if close or (math.isnan(mine) and math.isnan(theirs)) else f"{mine} != {theirs}"
    return "" if type(mine) is type(theirs) and mine == theirs else f"{mine!r} != {theirs!r}"


def _errors_differ(mine: Any, theirs: Any) -> str:
    if not isinstance(theirs, Raised):
        return f"manytune raises {mine.text}"
    if not isinstance(mine, Raised):
        return f"HF PEFT raises {theirs.text}"
    # Code that catches what HF PEFT raises must catch this.
    caught = not theirs.kinds or theirs.kinds[0] in mine.kinds
    return "" if caught else f"manytune raises {mine.text}, HF PEFT {theirs.text}"


def _tensors_differ(mine: Tensor, theirs: Tensor, tolerance: float) -> str:
    if (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
        return f"{tuple(mine.shape)} {mine.dtype} != {tuple(theirs.shape)} {theirs.dtype}"
    a, b = mine.double(), theirs.double()
    if torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True):
        return ""
    return f"off by {float((a - b).abs().max()):.3g} of {float(b.abs().max()):.3g}"
