"""The table of a recipe's keys in `docs/training.md`, from the recipe itself; a test compares the two."""

from typing import Any

from pydantic import BaseModel

from manytune.training.recipe import Recipe


def render() -> str:
    """The rows, one a key, without the header."""
    return "\n".join(_rows(Recipe, ""))


def _rows(section: type[BaseModel], prefix: str) -> list[str]:
    rows = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            rows += _rows(inner, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else f"`{_yaml(field.default)}`"
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append(f"| `{prefix}{name}` | {default} | {meaning} |")
    return rows


def _yaml(value: Any) -> str:
    names = {None: "null", True: "true", False: "false"}
    return names[value] if value is None or isinstance(value, bool) else f"{value}"
