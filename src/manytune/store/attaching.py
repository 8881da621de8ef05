"""A base with an adapter from disk, for the duration of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

from manytune.methods.config import PeftConfig
from manytune.model.activations import float32_activations
from manytune.model.peft_model import PeftModel
from manytune.store.base import Base


@contextmanager
def attached(
    base: Base, directory: Path | None, *, activations: Literal["float32", "base"] = "float32"
) -> Iterator[Any]:
    """The base with an adapter, which must fit tensor by tensor; afterwards the base is as it was.

    Args:
        base: With nothing attached.
        directory: The adapter's directory; None for the base itself.
        activations: As in a recipe's `training`: on a base in half precision the adapter runs as it was trained, and
            the base as the adapters that it is compared with.

    Raises:
        CheckpointError: A tensor is missing, left over or of another shape.
    """
    if directory is None:
        with _running(base.model, activations):
            yield base.model
        return
    config = PeftConfig.from_pretrained(directory).for_loading()
    model = PeftModel.from_pretrained(base.model, directory, config=config, strict=True)
    try:
        with _running(model, activations):
            yield model
    finally:
        if model.tuner.in_layers:
            model.unload()


def _running(model: Any, activations: Literal["float32", "base"]) -> Any:
    return float32_activations(model) if activations == "float32" else nullcontext()
