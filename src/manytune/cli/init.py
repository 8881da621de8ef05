"""`manytune init`: a first recipe for a data file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manytune.atomic import atomic_write, require_absent, require_writable

if TYPE_CHECKING:
    from manytune.training.recipe import Recipe


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("init")(init)


def init(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A .jsonl, .json, .csv, .tsv or .parquet file, or a datasets name.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("recipe.yaml"),
) -> None:
    """Look at a data file and write a recipe for it, with a comment on each key.

    Conversations are recognised by their columns, in OpenAI's, ShareGPT's, Alpaca's or TRL's form, and so is running
    text; of other rows, two columns are taken for what is asked and what is answered. A file that exists isn't
    overwritten.
    """
    from manytune.data.readers import require_there

    require_absent(output)
    require_writable(output)
    require_there(file)
    from manytune.training.recipe import outline_from, read_mapping
    from manytune.training.starting_recipe import starting_recipe

    atomic_write(output, starting_recipe(file, output=output))
    recipe = outline_from(read_mapping(output), where=str(output))
    typer.echo(f"{output} is written: {_what_is_learned(recipe)}. Read it, and then:")
    typer.echo(f"  manytune train {output}")
    if recipe.data.test is not None:
        typer.echo(f"  manytune evaluate {recipe.output}")


def _what_is_learned(recipe: Recipe) -> str:
    data = recipe.data
    if recipe.task != "generation":
        return f"{recipe.task} of {data.tokens or data.text} by {data.tags or data.label}"
    if data.is_conversational:
        return f"conversations in the form {data.format}" if data.format != "text" else "running text"
    template = data.prompt_template()
    return f"{template.completion} after {template.prompt!r}"
