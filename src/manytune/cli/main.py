"""The `manytune` command: its subcommands, and what happens when one of them fails.

Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from typing import Annotated, Any

import typer

from manytune import __version__
from manytune.atomic import write_error
from manytune.cli.command_line import CommandGroup, CommandLine
from manytune.cli.outputs.lines import print_error, print_line
from manytune.errors import ManytuneError
from manytune.terminal import quiet_libraries
from manytune.training.distributed.launchers import check_alone

# In the order in which a newcomer meets them. Each module has `register(app)`, and imports what its command
# needs inside the command, so that `manytune --help` answers at once.
COMMAND_MODULES = (
    "demo",
    "init",
    "data",
    "train",
    "evaluate.command",
    "compare",
    "sweep",
    "plan",
    "generate",
    "chat",
    "adapters.group",
    "serve",
    "keys",
)


# Commands whose --set changes a key of a recipe.
_OF_RECIPES = ("train", "compare", "sweep")
# Its base is the error of every wrong usage; typer has no public name for it.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class _ErrorBoundary(CommandGroup):
    """A user's error becomes a message and an exit status; a defect of manytune keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            _show_usage(error)
            raise typer.Exit(2) from None
        except ManytuneError as error:
            print_error(str(error))
            raise typer.Exit(1) from None
        except OSError as error:
            found = write_error(error)
            if found is None:
                raise
            print_error(str(found))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None


def _show_usage(error: Any) -> None:
    """Print what is wrong with a command line as other errors are, after the command's usage."""
    if error.ctx is None or "Usage: " in error.format_message():  # a command without arguments gets its help
        error.show()
        return
    typer.echo(error.ctx.get_usage(), err=True)
    print_line(f"Its options: {error.ctx.command_path} --help", stderr=True)
    said = error.format_message().replace("Value error, ", "").replace("Input should be", "it should be")
    unknown = re.match(r"No such option: --([\w-]+)", said)
    if unknown and error.ctx.info_name in _OF_RECIPES and (key := _key_called(unknown[1])):
        said = f"No such option: --{unknown[1]}. A recipe's key is given with --set: {key}."
    dashed = any(f"({dash}" in said for dash in "\N{EN DASH}\N{EM DASH}")
    if said.startswith("Got unexpected extra argument") and not dashed:
        takes_keys = error.ctx.info_name in (*_OF_RECIPES, "plan")
        said = f"{said.rstrip('.')}. Put a value with spaces in quotes"
        said += ", and write --set as --set training.epochs=3." if takes_keys else "."
    # Word processors make a dash of the hyphens before an option, which then is an argument.
    if dashed:
        said = f"{said.rstrip('.')}. An option begins with two hyphens: --."
    print_error(said)


def _key_called(option: str) -> str:
    from manytune.cli.recipes import key_called

    return key_called(option)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"manytune {__version__}")
        raise typer.Exit


def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """One frozen base model, many small fine-tunes: train them, see whether each one worked, keep them.

    Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    quiet_libraries()
    if context.invoked_subcommand not in (None, "train"):
        check_alone(context.invoked_subcommand)


def build_app() -> typer.Typer:
    """The command line with all its subcommands."""
    app = CommandLine(
        name="manytune", cls=_ErrorBoundary, add_completion=True, pretty_exceptions_enable=False
    )
    app.callback()(_root)
    for module in COMMAND_MODULES:
        import_module(f"manytune.cli.{module}").register(app)
    return app


def main() -> None:
    """Entry point of the `manytune` command."""
    # GNU OpenMP's threads spin for long before they sleep, and where other processes want the cores, too, a training
    # step then took 3 to 10 times as long as with this, which costs nothing measurable on an idle machine. It is
    # read when PyTorch is first imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if (
        "LOCAL_RANK" in os.environ
    ):  # torch's C++ parts would give advice on exchanging gradients, in every process
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    build_app()()


if __name__ == "__main__":
    main()
