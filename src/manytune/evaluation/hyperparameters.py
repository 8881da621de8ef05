"""The hyperparameters of a training in one line, as a report shows them at its top."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Under which a system's provenance has them.
TITLE = "Hyperparameters"

#: What everybody asks for first, in this order; the recipe has the rest.
_OF_TRAINING = ("learning_rate", "lr_scheduler", "epochs", "max_steps", "batch_size", "weight_decay", "seed")


def hyperparameters(recipe: Mapping[str, Any]) -> dict[str, str]:
    """The method's options and the most important ones of training, under a title; nothing if the recipe has neither.

    Args:
        recipe: A recipe's content, with its sections `method` and `training`.
    """
    method = recipe.get("method")
    options = (
        dict(method) if isinstance(method, Mapping) else {"name": method} if isinstance(method, str) else {}
    )
    training = recipe.get("training")
    chosen = {name: training.get(name) for name in _OF_TRAINING} if isinstance(training, Mapping) else {}
    name = str(options.pop("name", ""))
    parts = [", ".join([name] * bool(name) + _assigned(options)), ", ".join(_assigned(chosen))]
    text = "; ".join(part for part in parts if part)
    return {TITLE: text} if text else {}


def _assigned(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={_written(value)}" for name, value in values.items() if value not in (None, [], {})]


def _written(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    return str(value)
