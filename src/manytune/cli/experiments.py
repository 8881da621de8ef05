"""Arguments and options that `manytune compare` and `manytune sweep` have in common."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from manytune.experiments.runner import Runner


class Place(StrEnum):
    """Where trials are run."""

    HERE = "here"
    RAY = "ray"


Recipe = Annotated[Path, typer.Argument(help="A YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key, as in compare.limit=50; repeatable."),
]
Workers = Annotated[
    int, typer.Option(min=1, help="Processes that train at once; each holds a base of its own in memory.")
]
On = Annotated[
    Place,
    typer.Option(
        help="Where the workers are: processes here, or tasks of Ray (the extra manytune[cluster])."
    ),
]


def runner_of(workers: int, place: Place) -> Runner:
    """What runs trials there."""
    from manytune.experiments.runner import InProcesses, InTurn

    if place is Place.RAY:
        from manytune.experiments.ray_runner import OnRay

        return OnRay(workers)
    return InTurn() if workers == 1 else InProcesses(workers)
