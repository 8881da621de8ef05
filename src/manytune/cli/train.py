"""`manytune train`: from a recipe to an adapter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manytune.cli.options import AsJson
from manytune.errors import ManytuneError, RunError

if TYPE_CHECKING:
    from manytune.training.distributed.launchers import Launched
    from manytune.training.recipe import Recipe


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(train)


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key, as in training.epochs=1; repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in the output directory.")
    ] = False,
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", help="Leave the checkpoints in place at the end.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate tokens, time and memory; train nothing.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure the machine's FLOP/s for the MFU after a short run too."),
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train with this many processes of this machine, each on a GPU of its own if there are any.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train what RECIPE describes: one directory a run, resumable."""
    if dry_run and (resume or overwrite or keep_checkpoints or measure or processes):
        raise typer.BadParameter(
            "trains nothing, so --resume, --overwrite, --keep-checkpoints, --measure and --processes don't go with it",
            param_hint="--dry-run",
        )
    from manytune.cli.recipes import check_run
    from manytune.training.distributed.launchers import launched

    found = launched()
    place = None if dry_run or found else partial(check_run, resume=resume, overwrite=overwrite)
    loaded = _load(recipe, overrides or [], found, place)
    if dry_run:
        _estimate(loaded, as_json=as_json)
    elif (processes or 1) > 1:
        flags = {
            "--resume": resume,
            "--overwrite": overwrite,
            "--keep-checkpoints": keep_checkpoints,
            "--measure": measure,
            "--json": as_json,
        }
        options = [f"--set={override}" for override in overrides or []]
        options += [flag for flag, wanted in flags.items() if wanted]
        _start(["train", *options, "--", str(recipe)], processes or 1, loaded, found)
    else:
        _train(
            loaded,
            found,
            resume=resume,
            overwrite=overwrite,
            keep_checkpoints=keep_checkpoints,
            measure=measure,
            as_json=as_json,
        )


def _load(
    recipe: Path, overrides: list[str], found: Launched | None, check_place: Callable[[Recipe], None] | None
) -> Recipe:
    """Read the recipe; of several processes that can't, one on each machine says why."""
    from manytune.cli.recipes import check_recipe
    from manytune.training.recipe import load_recipe

    try:
        outline = check_recipe(recipe, overrides)
        if check_place is not None:
            check_place(outline)
        return load_recipe(recipe, overrides)
    except ManytuneError:
        if found is not None and found.local_rank > 0:
            raise SystemExit(1) from None
        raise


def _estimate(recipe: Recipe, *, as_json: bool) -> None:
    from rich.console import Console

    from manytune.cli.outputs.json_output import print_json
    from manytune.cli.outputs.training import print_estimate
    from manytune.training.dry_run import estimate

    console = Console(stderr=True, highlight=False)
    estimated = estimate(recipe, notify=lambda line: console.print(line, markup=False))
    if as_json:
        print_json(estimated.to_dict())
    else:
        print_estimate(estimated)


def _start(arguments: list[str], processes: int, recipe: Recipe, found: Launched | None) -> None:
    """Start the command again in several processes.

    Raises:
        RunError: A launcher has done so already, there are fewer GPUs, or a process was killed.
    """
    import torch

    from manytune.training.distributed.launch import launch
    from manytune.training.distributed.processes import check_devices

    if found is not None:
        raise RunError(
            f"--processes {processes} starts processes, and a launcher has started this one as one of {found.count} "
            "already. Leave one of the two out."
        )
    if recipe.training.device != "cpu" and torch.cuda.is_available():
        check_devices(processes)
    # -P: a file of the user's in this directory must not pass for a module.
    raise typer.Exit(launch(["-P", "-m", "manytune", *arguments], processes))


def _train(
    recipe: Recipe,
    found: Launched | None,
    *,
    resume: bool,
    overwrite: bool,
    keep_checkpoints: bool,
    measure: bool,
    as_json: bool,
) -> None:
    from rich.console import Console

    from manytune.cli.outputs.json_output import print_json
    from manytune.cli.outputs.training import print_run
    from manytune.experiments.validation_scores import validation_scores
    from manytune.store.run_directory import RunDirectory
    from manytune.training.distributed.failures import said_once
    from manytune.training.distributed.launch import end_with_launcher
    from manytune.training.distributed.processes import join, leave
    from manytune.training.distributed.silence import silence_libraries
    from manytune.training.progress import ProgressDisplay
    from manytune.training.run import run

    if found is not None and found.restarts and RunDirectory(Path(recipe.output)).begun:
        resume, overwrite = True, False  # torchrun --max-restarts
    if found is not None and found.by_manytune:
        end_with_launcher()
    processes = join(found, device=recipe.training.device)
    if not processes.is_first:
        silence_libraries()
    # Progress goes to stderr, so that stdout holds the result alone.
    console = Console(stderr=True, highlight=False, quiet=not processes.is_first)
    with said_once(processes), ProgressDisplay(console) as progress:
        finished = run(
            recipe,
            resume=resume,
            overwrite=overwrite,
            keep_checkpoints=keep_checkpoints,
            measure_flops=measure or None,
            report=progress,
            scorer=validation_scores,
            notify=lambda line: console.print(line, markup=False),
            processes=processes,
        )
        leave()
    if not processes.is_first:
        return
    if as_json:
        print_json(finished.scores.to_dict())
    else:
        print_run(finished)
