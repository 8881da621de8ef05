"""The tree of errors is the one that the module's docstring draws."""

from __future__ import annotations

import inspect
import re

import pytest

from manytune import errors
from manytune.errors import (
    DataError,
    LockedError,
    ManytuneError,
    StoreError,
    TargetExistsError,
    TemplateError,
)

CLASSES = {
    name: found
    for name, found in vars(errors).items()
    if inspect.isclass(found) and issubclass(found, ManytuneError)
}


def drawn() -> dict[str, str | None]:
    """Every error in the docstring with the one that it hangs from, by indentation."""
    above: dict[int, str] = {}
    found: dict[str, str | None] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([ │├└─]*)(\w+Error)\b", line)
        if match:
            depth = len(match[1])
            found[match[2]] = above[depth - 4] if depth else None
            above[depth] = match[2]
    return found


def test_the_docstring_draws_every_error_below_the_one_that_it_derives_from() -> None:
    parents = {
        name: next((base.__name__ for base in found.__bases__ if issubclass(base, ManytuneError)), None)
        for name, found in CLASSES.items()
    }
    assert drawn() == parents


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_error_says_in_a_sentence_what_it_means(name: str) -> None:
    assert CLASSES[name].__doc__ and CLASSES[name].__doc__ != CLASSES[name].__bases__[0].__doc__


def test_errors_are_also_the_built_in_ones_of_the_same_meaning() -> None:
    assert issubclass(StoreError, OSError)
    assert issubclass(TargetExistsError, FileExistsError)
    assert issubclass(DataError, ValueError)
    assert not issubclass(LockedError, FileExistsError)


def test_a_data_error_names_its_place_before_the_message() -> None:
    error = TemplateError("there is no field 'x'", where="train.jsonl:17")
    assert str(error) == "train.jsonl:17: there is no field 'x'"
    assert error.where == "train.jsonl:17"
    assert str(DataError("no rows")) == "no rows"
