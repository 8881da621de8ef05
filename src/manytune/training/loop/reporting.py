"""Where the course of a training goes besides its own log: transformers' integrations, by their names."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from manytune.errors import RunError
from manytune.extras import install_command
from manytune.training.recipe import REPORTERS, TrainingRecipe

_TENSORBOARD = "tensorboard"


def check_reporters(settings: TrainingRecipe) -> None:
    """Refuse what a package is missing for.

    Raises:
        RunError: Names the package and how to install it.
    """
    for name in _named(settings):
        if importlib.util.find_spec(name) is None:
            # Only TensorBoard is an extra of manytune's.
            install = install_command("track") if name == _TENSORBOARD else f"pip install {name}"
            raise RunError(
                f"training.report_to {name} needs the package {name}. Run: {install}, or leave it out of "
                f"training.report_to{' and set training.tensorboard to false' if settings.tensorboard else ''}."
            )


def reporting_callbacks(settings: TrainingRecipe, directory: Path | None) -> list[Any]:
    """Transformers' callbacks, or their classes, which its Trainer makes callbacks of.

    Args:
        settings: The recipe's training section.
        directory: Where TensorBoard's event files go.

    Raises:
        RunError: A package is missing, or there is no directory for TensorBoard's files.
    """
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    check_reporters(settings)
    named = _named(settings)
    others = get_reporting_integration_callbacks([name for name in named if name != _TENSORBOARD])
    return [*others, *([_tensorboard(directory)] if _TENSORBOARD in named else [])]


def _named(settings: TrainingRecipe) -> list[str]:
    wanted = {*settings.report_to, *([_TENSORBOARD] if settings.tensorboard else [])}
    return [name for name in REPORTERS if name in wanted]


def _tensorboard(directory: Path | None) -> TrainerCallback:
    if directory is None:
        raise RunError(
            "training.tensorboard needs a directory for its event files; pass tensorboard_directory."
        )
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(str(directory)))
