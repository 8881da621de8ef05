"""What an interrupted run must find unchanged when it is resumed: its recipe, its rows, its base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from manytune import __version__
from manytune.data.dataset import tokens_digest
from manytune.errors import RecipeError, RunError
from manytune.training.distributed.processes import ALONE, Processes
from manytune.training.distributed.sharding import shards
from manytune.training.inputs import RunInputs
from manytune.training.recipe import Recipe, load_recipe
from manytune.training.resume import Checkpoint

_DECIDING = {
    "train": "training rows",
    "validation": "validation rows",
    "base": "base",
    "adapter": "adapter that it started from",
}
_NO_RESULT = ("output", "data.cache", "training.sharding")  # keys that change no result
_ROUNDING = ("threads", "torch", "transformers", "manytune")


def run_identity(inputs: RunInputs, *, processes: Processes = ALONE) -> dict[str, object]:
    """What the remaining steps of an interrupted run depend on in addition to the recipe.

    Args:
        inputs: What the run starts from.
        processes: Those that train together.
    """
    return {
        "train": tokens_digest(inputs.data.train),
        "validation": tokens_digest(inputs.data.validation),
        "base": inputs.base.fingerprint.identity,
        "adapter": None if inputs.adapter is None else inputs.adapter.digest,
        "processes": processes.count,
        "sharded": shards(inputs.recipe.training, processes),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "manytune": __version__,
    }


def check_identity(
    checkpoint: Checkpoint, identity: Mapping[str, object], notify: Callable[[str], None]
) -> None:
    """Refuse to continue with other rows or another base; warn of what may change the last bits.

    Raises:
        RunError: The rows or the base changed.
    """
    before = checkpoint.identity
    for key, what in _DECIDING.items():
        if before.get(key) != identity[key]:
            raise RunError(
                f"{checkpoint.path}: the {what} changed since the run was interrupted. Restore what was there, or "
                "start again with --overwrite."
            )
    if (count := before.get("processes", 1)) != identity["processes"]:
        notify(
            f"the run had {count} processes before the interruption and has {identity['processes']} now: the steps are "
            "the same, the sums are rounded otherwise, and dropout, where there is some, draws other masks"
        )
    if (was := before.get("sharded", False)) != identity.get("sharded", False):
        notify(
            f"the weights were{'' if was else ' not'} sharded over processes before the interruption and are"
            f"{' not' if was else ''} now: the steps are the same, the sums are rounded otherwise"
        )
    for key in _ROUNDING:
        if before.get(key) != identity[key]:
            notify(
                f"warning: {key} was {before.get(key)} before the interruption and is {identity[key]} now, so the "
                "adapter may differ in its last bits from that of an uninterrupted run"
            )


def begun_with(file: Path) -> Recipe:
    """The recipe that a run began with.

    Raises:
        RunError: It can't be read.
    """
    try:
        return load_recipe(file)
    except RecipeError as error:
        raise RunError(
            f"{error} The run began with this recipe; it was damaged or changed since. Restore it, train again with "
            "--overwrite, or remove the directory."
        ) from error


def check_agreement(identity: Mapping[str, object], processes: Processes) -> None:
    """Refuse to train on processes that read different things: on several machines, files may differ.

    Raises:
        RunError: Says which differ.
    """
    digests = b"".join(sha256(repr(identity[key]).encode()).digest() for key in _DECIDING)
    everyones = processes.gather(torch.frombuffer(bytearray(digests), dtype=torch.uint8))
    for rank, others in enumerate(everyones):
        differs = (others != everyones[0]).reshape(len(_DECIDING), -1).any(1).tolist()
        for what, odd in zip(_DECIDING.values(), differs, strict=True):
            if odd:
                raise RunError(
                    f"process {rank} of {processes.count} doesn't have the {what} that process 0 has. Give all "
                    "machines the same files."
                )


def check_recipe(file: Path, recipe: Recipe) -> None:
    """Refuse to continue a run with another recipe: its past steps couldn't be repeated with it.

    Args:
        file: The recipe that the run began with.
        recipe: The one to continue with; only its `output`, `data.cache` and `training.sharding` may differ, and it
            needn't repeat the date.

    Raises:
        RunError: A key differs; names each.
    """
    before = _flat(begun_with(file).model_dump(mode="json"))
    now = _flat(recipe.model_dump(mode="json"))
    if recipe.data.date is None:
        now["data.date"] = before["data.date"]  # that of the run's start
    if recipe.data.format == "auto":
        now["data.format"] = before.get("data.format")  # what was found in the files
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key) and key not in _NO_RESULT]
    if changed:
        shown = "; ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in changed)
        raise RunError(
            f"{file.parent}: the recipe changed since the run began: {shown}. Resume with the former recipe "
            f"({file}), or start again with --overwrite."
        )


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
