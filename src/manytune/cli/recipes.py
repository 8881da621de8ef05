"""Recipes on the command line: their mistakes are reported before a model library is imported, which takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from manytune.experiments.recipe import Experiment
    from manytune.training.recipe import Recipe


_SMALL = 1 << 20
"""Bytes of rows that are read twice: before the model libraries are imported, so that their mistakes come first too."""

OF_EXPERIMENTS = ("compare", "forgetting")
"""The sections that a recipe of an experiment has besides a training's."""


def check_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Check a training's recipe, that its files and its base are there, and the rows of small files.

    Args:
        path: A YAML file.
        overrides: `section.key=value` texts.

    Returns:
        The recipe; the values of its method's options aren't checked.

    Raises:
        RecipeError: A key or a value is wrong.
        DataError: A file isn't there, or its rows can't be used.
        StoreError: The base isn't there.
    """
    from manytune.training.recipe import outline_from, read_mapping

    recipe = outline_from(read_mapping(path, overrides), where=str(path))
    if recipe.training.validation is not None:
        from manytune.experiments.score_names import check_scores

        check_scores(recipe)
    _check_files(recipe)
    return recipe


def key_called(option: str) -> str:
    """What a recipe calls what is given as an option, such as `'epochs' is training.epochs here`; empty if nothing."""
    from manytune.training.other_names import called_here
    from manytune.training.recipe import Recipe
    from manytune.training.recipe_errors import elsewhere

    name = option.replace("-", "_")
    return called_here(name) or elsewhere(Recipe, "", name)


def check_run(recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """See that a run may begin or continue in its directory.

    Raises:
        RunError: It may not; see `check_place`.
    """
    from manytune.store.run_directory import RunDirectory
    from manytune.training.run_place import check_place

    check_place(RunDirectory(Path(recipe.output)), resume=resume, overwrite=overwrite)


def check_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """The same as `check_recipe` for an experiment's recipe, with the files of its probes and of its rehearsal.

    Raises:
        RecipeError: See `check_recipe`, as for the others.
        DataError: See there.
        StoreError: See there.
    """
    from manytune.data.readers import require_there
    from manytune.training.recipe import outline_from, read_mapping

    content = read_mapping(path, overrides)
    # Before the metrics are imported, which an experiment's own sections are checked with.
    outline_from({key: value for key, value in content.items() if key not in OF_EXPERIMENTS}, where=str(path))
    from manytune.experiments.recipe import outline_of

    experiment = outline_of(content, where=str(path))
    _check_files(experiment.recipe)
    rehearsal = experiment.forgetting.rehearsal
    files = [probe.file for probe in experiment.forgetting.probes]
    for file in files if rehearsal is None else [*files, rehearsal.file]:
        require_there(file)
    return experiment


def _check_files(recipe: Recipe) -> None:
    from manytune.data.dataset import read_splits
    from manytune.data.readers import require_there
    from manytune.store.base_source import require_base

    for source in recipe.data.sources:
        require_there(source)
    require_base(recipe.base)
    files = [Path(source).expanduser() for source in recipe.data.sources]
    if all(file.is_file() for file in files) and sum(file.stat().st_size for file in files) <= _SMALL:
        read_splits(recipe.data)
