"""The cells of the matrix: a script each, run with both libraries."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import peft
import torch
from tests.parity.bases import PACKED, Base
from tests.parity.calls import CALLS, Call
from tests.parity.methods import METHODS, ON_PACKED, Method
from tests.parity.observed import Raised, Seen, differences
from tests.parity.operations import OPERATIONS, applies
from tests.parity.session import Session

import manytune

LIBRARIES: dict[str, Any] = {"peft": peft, "manytune": manytune}


@dataclass(frozen=True)
class Cell:
    """One script.

    Attributes:
        name: `method-model-operation`, or what the script is about.
        script: Runs it with a library in an empty folder, and notes what it sees.
        tolerance: Of the numbers that are compared.
        place: Method, model and operation of a cell of the matrix.
    """

    name: str
    script: Callable[[Any, Path, Seen], None] = field(hash=False, compare=False)
    tolerance: float = 1e-5
    place: tuple[str, str, str] | None = None

    def __str__(self) -> str:
        return self.name


def cells() -> Iterator[Cell]:
    """The matrix, and the calls with odd options."""
    for method in METHODS:
        for base in (*method.bases, *(PACKED if method.name in ON_PACKED else ())):
            for operation in OPERATIONS:
                if applies(operation, method, base):
                    yield _of_matrix(method, base, operation)
    for call in CALLS:
        yield _of_call(call)


def _of_matrix(method: Method, base: Base, operation: str) -> Cell:
    def script(library: Any, directory: Path, seen: Seen) -> None:
        written = {name: _written(method, base, name) for name in LIBRARIES} if operation == "load" else {}
        OPERATIONS[operation](Session(library, base, method, directory, written, seen))

    place = (str(method), str(base), operation)
    return Cell("-".join(place), script, tolerance=_tolerance(base, operation), place=place)


def _tolerance(base: Base, operation: str) -> float:
    """Of bfloat16, of 8-bit products, or of float32."""
    return 0.1 if operation == "bf16" else 0.02 if base.packed == 8 else 1e-5


def _of_call(call: Call) -> Cell:
    return Cell(f"call-{call.name}", call.script)


@cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@cache
def _written(method: Method, base: Base, library: str) -> Path:
    """A folder with a method's adapter for a base, written by a library."""
    directory = Path(_root().name) / f"{method}-{base}-{library}"
    Session(LIBRARIES[library], base, method, directory).attach_trained().save_pretrained(str(directory))
    return directory


@cache
def differing(cell: Cell) -> dict[str, str]:
    """The observations of a cell in which manytune differs from HF PEFT, with how."""
    seen = {name: _seen(cell, library) for name, library in LIBRARIES.items()}
    stopped = [run.values["the script"] for run in seen.values()]
    assert not all(isinstance(end, Raised) for end in stopped), f"the script fails with both: {stopped}"
    return differences(seen["manytune"], seen["peft"], cell.tolerance)


def _seen(cell: Cell, library: Any) -> Seen:
    seen = Seen()
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            cell.script(library, Path(directory), seen)
        except Exception as error:
            seen.note("the script", Raised.of(error))
        else:
            seen.note("the script", "ends")
    return seen
