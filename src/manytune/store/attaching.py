"""A base with an adapter from disk, for the duration of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manytune.methods.config import PeftConfig
from manytune.model.peft_model import PeftModel
from manytune.store.base import Base


@contextmanager
def attached(base: Base, directory: Path | None) -> Iterator[Any]:
    """The base with an adapter, which must fit tensor by tensor; afterwards the base is as it was.

    Args:
        base: With nothing attached.
        directory: The adapter's directory; None for the base itself.

    Raises:
        CheckpointError: A tensor is missing, left over or of another shape.
    """
    if directory is None:
        yield base.model
        return
    config = PeftConfig.from_pretrained(directory).for_loading()
    model = PeftModel.from_pretrained(base.model, directory, config=config, strict=True)
    try:
        yield model
    finally:
        if model.tuner.in_layers:
            model.unload()
