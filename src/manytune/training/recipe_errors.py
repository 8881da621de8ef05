"""What is wrong with a recipe, in its own words: the key, what was expected and found, the nearest key."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeGuard, get_args

from pydantic import BaseModel, ValidationError

from manytune.data.nearest import did_you_mean
from manytune.data.recipe import DataRecipe
from manytune.data.section import description_of, kind_of, no_such_key
from manytune.data.task_recipe import TaskRecipe
from manytune.methods.outline import method_outline
from manytune.training.other_names import called_here

_ALTERNATIVES = {("train", "files"), ("train", "tasks")}  # pydantic's names of the two forms of data.train
_MOST, _LONGEST = 20, 1500  # mistakes in a message, and characters about each
_TYPES = {
    "bool_type": "true or false",
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
}

_AS_TEXT = {
    type(None): "; write a text, in quotes.",
    bool: "; YAML reads yes, no, on and off like that: put the word in quotes.",
    list: "; write one text, without brackets and dashes.",
    dict: "; write one text in the key's own line.",
}
"""What to write where a text is expected, by what is there; numbers and dates are put in quotes."""


def explain(recipe: type[BaseModel], problem: Any) -> str:
    """One of pydantic's findings, in a recipe's words.

    Args:
        recipe: The model that the file was read into.
        problem: An entry of a `ValidationError`.
    """
    place = problem["loc"]
    path = [
        key for before, key in zip(("", *place), place, strict=False) if (before, key) not in _ALTERNATIVES
    ]
    name = re.sub(r"\.(\d+)\b", r"[\1]", ".".join(str(key)[:100] for key in path))
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        if renamed := called_here(str(path[-1])) or elsewhere(recipe, name, str(path[-1])):
            return f"{name}: there is no such key; {renamed}."
        return f"{name}: {no_such_key(str(path[-1]), _section_at(recipe, path[:-1]).model_fields)}"
    if kind == "invalid_key":
        section = ".".join(map(str, place[:-1]))
        return f"{section}: {value!r} is no key; put a key in quotes, and write numbers without commas"
    if kind == "missing":
        return f"{name}: this key is missing. Give {_summary_of(recipe, path)}"
    if kind == "value_error":  # raised by a validator of ours or by manytune.methods: complete as it is
        return f"{name}: {problem['ctx']['error']}" if name else str(problem["ctx"]["error"])
    if kind in ("model_type", "model_attributes_type"):
        keys = keys_of(_section_at(recipe, path))
        as_name = f"; write it as {{name: {value}}}" if keys == "name" and isinstance(value, str) else "."
        return f"{name}: expected a section with the keys {keys}; found {kind_of(value)}{as_name}"
    expected = _TYPES.get(kind) or problem["msg"].removeprefix("Input should be ")
    if expected.startswith(("greater than", "less than")):
        expected = f"a number {expected}"
    nearest = ""
    if kind == "literal_error":
        nearest = did_you_mean(str(value), re.findall(r"'([^']*)'", expected))
    if kind in ("float_type", "int_type") and isinstance(value, str):
        nearest = _as_number(value, whole=kind == "int_type")
    if (
        kind in ("int_type", "int_from_float")
        and isinstance(value, float)
        and value.is_integer()
        and value < 1e15
    ):
        nearest = f"; write {int(value)}."
    if isinstance(value, str) and value.casefold() == "none":
        nearest = "; write null for none."
    if kind == "string_type":
        nearest = _AS_TEXT.get(type(value), "; put it in quotes.")
    return f"{name}: expected {expected}; found {kind_of(value)}{nearest or '.'}"


def elsewhere(recipe: type[BaseModel], name: str, key: str) -> str:
    """Where a key belongs that was given as `name`, as `called_here` says it; empty if there is no other place."""
    places = [
        f"{section}.{key}"
        for section, field in recipe.model_fields.items()
        if _is_section(field.annotation) and key in field.annotation.model_fields
    ]
    if any(key in options for options in method_outline().values()):
        places.append(f"method.{key}")
    other = next((place for place in places if place != name), None)
    return f"{key!r} is {other} here" if other else ""


def _as_number(text: str, *, whole: bool) -> str:
    """What to write for a text that was meant to be a number; empty if that isn't clear."""
    if whole and re.fullmatch(r"[1-9]\d{0,2}([,. \u00a0\u202f]\d{3})+", text):
        return f"; write {re.sub('[^0-9]', '', text)}, without separators."
    if not whole and text.endswith("%") and (number := _number_in(text[:-1])):
        return f"; write a share, {float(number) / 100:g}."
    number = _number_in(text)
    return f"; write {number}, without quotes." if number else ""


def _number_in(text: str) -> str:
    """The number that a text was meant to be: in quotes, with a decimal comma, or with a dash for a minus."""
    plain = re.sub("[\u2010-\u2015\u2212]", "-", text.strip())
    plain = plain.replace(",", ".") if "." not in plain else plain
    return plain if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", plain) else ""


def list_mistakes(where: str, error: ValidationError, explained: Callable[[Any], str]) -> str:
    """A message of a line for each mistake, or for the first of very many.

    Args:
        where: What was read.
        error: What pydantic found.
        explained: Returns one of its findings in a recipe's words.
    """
    lines = [explained(problem) for problem in error.errors()[:_MOST]]
    if error.error_count() > _MOST:
        lines.append(f"there are {error.error_count() - _MOST:,} more mistakes")
    short = (line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…" for line in dict.fromkeys(lines))
    return "\n".join(f"{where}: {line}" for line in short)


def unreadable(file: Path, error: OSError) -> str:
    """What is wrong with a recipe's file that the system doesn't open, and what to do."""
    if isinstance(error, IsADirectoryError):
        return f"{file}: this is a directory; name the recipe's file, such as {file / 'recipe.yaml'}."
    if not isinstance(error, FileNotFoundError):
        return f"{file}: the recipe can't be read: {error.strerror or error}. Have its permissions or its disk checked."
    others = file.parent.iterdir() if file.parent.is_dir() else ()
    nearest = did_you_mean(str(file), (str(other) for other in others if other.suffix in (".yaml", ".yml")))
    return (
        f"{file}: there is no such file{nearest or '.'} `manytune init FILE` writes a recipe for a data file."
    )


def _section_at(recipe: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel]:
    section = recipe
    for key in path:
        if isinstance(key, int):  # the number of a task, in the one list of sections that there is
            section = TaskRecipe
        elif (section, key) != (DataRecipe, "train"):
            annotation = section.model_fields[key].annotation
            section = next(a for a in (annotation, *get_args(annotation)) if _is_section(a))
    return section


def _is_section(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _summary_of(recipe: type[BaseModel], path: Sequence[str | int]) -> str:
    description = description_of(_section_at(recipe, path[:-1]), str(path[-1]))
    return " ".join((description[:1].lower() + description[1:]).split())


def keys_of(section: type[BaseModel]) -> str:
    """The keys of a section, for a message."""
    return ", ".join(section.model_fields)
