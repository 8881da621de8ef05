"""`manytune plan`: memory, time and cost of training and serving, before there is a machine for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from manytune.cli.options import AsJson


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(plan)


def plan(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="PLAN",
            help="A plan in YAML; or a model: its config.json, the directory that holds one, or a hub id whose "
            "config is in the hub's cache.",
            show_default=False,
        ),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            help="A device of the table, or this-machine, which is measured. Default: the plan's, or h100-sxm.",
            show_default=False,
        ),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(
            min=0, max=1e9, help="What an hour of one device costs, in any currency.", show_default=False
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a key, as in method.r=16 or serving.adapters=1000; repeatable.",
        ),
    ] = None,
    list_hardware: Annotated[
        bool, typer.Option("--list-hardware", help="Print the table of devices with its sources, and stop.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compute memory, time, replicas and cost of a training and a service from a model's config.

    Nothing is loaded, trained or asked of a network. Estimates are ranges; docs/planning.md has each formula with its
    source, and how far they were from measurements.
    """
    from manytune.cli.outputs.json_output import print_json
    from manytune.cli.outputs.plan import print_hardware, print_plan
    from manytune.planner.hardware import table

    if list_hardware:
        if as_json:
            print_json({name: device.model_dump() for name, device in table().items()})
        else:
            print_hardware(table())
        return
    if what is None:
        raise typer.BadParameter("expected a plan or a model", param_hint="PLAN")
    from manytune.planner.plan import make_plan
    from manytune.planner.recipe import plan_from
    from manytune.planner.this_machine import measure_this_machine

    recipe = plan_from(_content(what, hardware), overrides or [], where=what)
    found = make_plan(recipe, where=what, measure=measure_this_machine, price=price)
    if as_json:
        print_json(found.to_dict())
    else:
        print_plan(found)


def _content(what: str, hardware: str | None) -> dict[str, Any]:
    """A plan's file; or a model with a training and a service that are as usual."""
    from manytune.planner.recipe import PlanRecipe, read_bounded_yaml

    if Path(what).suffix in (".yaml", ".yml"):
        content = read_bounded_yaml(Path(what), PlanRecipe)
    else:
        content = {"model": what, "training": {}, "serving": {}}
    if hardware is not None:
        content["hardware"] = hardware
    return content
