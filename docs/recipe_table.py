"""The tables of a recipe's keys in `docs/training.md` and `docs/comparing.md`, from the code; tests compare them."""

from typing import Any, get_args, get_origin

from pydantic import BaseModel

from manytune.data.section import description_of
from manytune.experiments.forgetting_recipe import ForgettingRecipe
from manytune.experiments.recipe import CompareRecipe
from manytune.training.recipe import Recipe


def render() -> str:
    """The rows, one a key, without the header."""
    return "\n".join(_rows(Recipe, ""))


def render_experiment() -> str:
    """The same of an experiment's own sections."""
    return "\n".join([*_rows(CompareRecipe, "compare."), *_rows(ForgettingRecipe, "forgetting.")])


def _rows(section: type[BaseModel], prefix: str) -> list[str]:
    rows = []
    for name, field in section.model_fields.items():
        inner, is_list = _section_in(field.annotation)
        if inner is not None and not is_list:
            rows += _rows(inner, f"{prefix}{name}.")
            continue
        default = (
            "required" if field.is_required() else f"`{_yaml(field.get_default(call_default_factory=True))}`"
        )
        meaning = " ".join(description_of(section, name).split()).replace("|", "\\|")
        rows.append(f"| `{prefix}{name}` | {default} | {meaning} |")
        rows += _rows(inner, f"{prefix}{name}[].") if inner is not None else []
    return rows


def _section_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section that a key holds or may hold, and whether there may be several of it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    for part in get_args(annotation):
        section, _ = _section_in(part)
        if section is not None:
            return section, get_origin(annotation) in (tuple, dict) or _section_in(part)[1]
    return None, False


def _yaml(value: Any) -> str:
    names = {None: "null", True: "true", False: "false"}
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return names[value] if value is None or isinstance(value, bool) else f"{value}"
