"""Starting from an adapter instead of new weights: its method and options, and whether the recipe agrees."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from manytune.data.nearest import did_you_mean
from manytune.errors import RecipeError
from manytune.methods.config import CONFIG_NAME, PeftConfig
from manytune.methods.registry import method_of
from manytune.model.peft_model import PeftModel
from manytune.store.adapters import StoredAdapter, open_adapter
from manytune.store.base import Base
from manytune.store.digests import sha256_file
from manytune.store.references import adapter_directory, usual_store
from manytune.training.method_recipe import MethodRecipe
from manytune.training.recipe import Recipe

# What an adapter_config.json says of the file and its base, and not of the method.
_OF_THE_FILE = {field.name for field in fields(PeftConfig)}


@dataclass(frozen=True)
class StartingAdapter:
    """An adapter that a training starts from.

    Attributes:
        path: Its directory.
        config: Its method's options, as for attaching it.
        stored: What its manifest says.
    """

    path: Path
    config: PeftConfig
    stored: StoredAdapter

    @property
    def digest(self) -> str:
        """Of its tensors and its options: what a resumed run must find unchanged."""
        manifest = self.stored.manifest
        if manifest is not None:
            return json.dumps(dict(sorted(manifest.files.items())))
        files = sorted((*self.path.glob("*.safetensors"), self.path / CONFIG_NAME))
        return json.dumps({file.name: sha256_file(file) for file in files})

    def attach(self, base: Base, recipe: Recipe) -> PeftModel:
        """The base with the adapter, which trains on; the base's own weights stay frozen.

        Raises:
            CheckpointError: A tensor is missing, left over or of another shape.
        """
        for name in self.config._transient & set(recipe.method.model_extra or {}):
            setattr(self.config, name, (recipe.method.model_extra or {})[name])
        return PeftModel.from_pretrained(
            base.model, self.path, config=self.config, is_trainable=True, strict=True
        )


def starting_adapter(
    recipe: Recipe, *, base: Base | None = None, notify: Callable[[str], None] | None = None
) -> StartingAdapter | None:
    """The adapter that a recipe starts from; None if it starts from new weights.

    Args:
        recipe: The recipe.
        base: The base that it is to train on.
        notify: Receives a line about what couldn't be checked.

    Raises:
        StoreError: There is no such adapter, or it is damaged.
        BaseMismatchError: It was trained on another base.
    """
    if recipe.adapter is None:
        return None
    path = adapter_directory(recipe.adapter, usual_store())
    stored = open_adapter(path, base=base)
    if stored.note is not None and base is not None and notify is not None:
        notify(f"warning: {path}: {stored.note}")
    return StartingAdapter(path, PeftConfig.from_pretrained(path).for_loading(), stored)


def with_its_method(recipe: Recipe) -> Recipe:
    """The recipe with the method and the options of the adapter that it starts from; itself if there is none.

    Raises:
        RecipeError: The recipe's method or an option of it is another one.
        StoreError: There is no such adapter, or it is damaged.
    """
    found = starting_adapter(recipe)
    if found is None:
        return recipe
    method, options = method_of(found.config), _options(found.config)
    _check_agrees(recipe, found, method.name, options)
    own = {key: value for key, value in (recipe.method.model_extra or {}).items() if key not in options}
    resolved = MethodRecipe.model_validate({"name": method.name, **options, **own})
    return recipe.model_copy(update={"method": resolved})


def _options(config: PeftConfig) -> dict[str, Any]:
    """The options of the method that aren't its defaults, as a recipe writes them."""
    saved: dict[str, Any] = json.loads(config.to_json())
    usual = {field.name: field.default for field in fields(config)}
    return {
        key: value
        for key, value in saved.items()
        if key not in _OF_THE_FILE and value is not None and value != {} and value != usual.get(key)
    }


def _check_agrees(recipe: Recipe, found: StartingAdapter, name: str, options: Mapping[str, Any]) -> None:
    written, trained = recipe.method, found.stored.manifest
    if "name" in written.model_fields_set and written.name != name:
        raise RecipeError(
            f"method.name: expected {name}, the method of the adapter {found.path} that the training starts from; "
            f"found {written.name!r}{did_you_mean(written.name, [name])}. Leave method out."
        )
    # Names such as all-linear are lists of modules by the time they are saved.
    as_trained = ((trained.recipe or {}).get("method") or {}) if trained is not None else {}
    saved = json.loads(found.config.to_json())
    for key, value in (written.model_extra or {}).items():
        if key in found.config._transient or value in (options.get(key), saved.get(key), as_trained.get(key)):
            continue
        if isinstance(value, list) and sorted(map(str, value)) == saved.get(key):
            continue
        raise RecipeError(
            f"method.{key}: expected {saved.get(key)!r}, as in the adapter {found.path} that the training starts from; "
            f"found {value!r}. Leave it out."
        )
