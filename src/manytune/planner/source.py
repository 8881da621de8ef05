"""Where a model's config is: a file, a directory, the hub's cache, or the plan itself. The network is never asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manytune.errors import RecipeError
from manytune.planner.architecture import Architecture, architecture_of
from manytune.planner.recipe import read_bounded_yaml

_CONFIG = "config.json"


def architecture_from(asked: str | dict[str, Any]) -> Architecture:
    """A plan's model.

    Args:
        asked: As `PlanRecipe.model`.

    Raises:
        RecipeError: There is no such file, or planning doesn't know such a model.
    """
    if not isinstance(asked, str):
        return architecture_of(asked, where="model", strict=True)
    path = config_path(asked)
    return architecture_of(read_bounded_yaml(path), where=str(path))


ADAPTER_CONFIG = "adapter_config.json"


def config_path(asked: str) -> Path:
    """The config of a model that is here.

    Raises:
        RecipeError: It isn't here.
    """
    path = Path(asked).expanduser()
    if asked.strip() and path.is_file():
        return path
    if asked.strip() and path.is_dir():
        if (path / _CONFIG).is_file():
            return path / _CONFIG
        if (path / ADAPTER_CONFIG).is_file():
            raise RecipeError(
                f"model: the directory {asked!r} holds an adapter. Name its base, which is planned for."
            )
        raise RecipeError(
            f"model: the directory {asked!r} has no {_CONFIG}. Name one that save_pretrained wrote."
        )
    cached = _in_the_hubs_cache(asked)
    if cached is not None:
        return cached
    raise RecipeError(
        f"model: expected a {_CONFIG}, the directory that holds one, a hub id whose config is in the hub's cache, or a "
        f"section with the config's keys; found {asked!r}, which is none of them. Planning asks no network: save the "
        f"model's {_CONFIG}, which is a few hundred bytes, and give its path."
    )


def _in_the_hubs_cache(asked: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(asked, _CONFIG)
    except (HFValidationError, OSError):
        return None
    return Path(found) if isinstance(found, str) else None
