"""`manytune adapters`: adapters on disk and the store that keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from manytune.cli import adapters_make
from manytune.cli.outputs import adapters as adapters_output
from manytune.cli.stored import directory_of, store_at
from manytune.errors import ManytuneError

Store = Annotated[
    Path,
    typer.Option("--store", envvar="MANYTUNE_STORE", help="The store's directory; or set MANYTUNE_STORE."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Adapter = Annotated[
    str,
    typer.Argument(
        help="A name in the store, a digest or its first digits; or a run's or an adapter's directory.",
        show_default=False,
    ),
]
Kept = Annotated[
    str, typer.Argument(help="A name in the store, a digest or its first digits.", show_default=False)
]
DEFAULT_STORE = Path("adapters")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    adapters = typer.Typer(
        no_args_is_help=True, help="Keep adapters, look at them, combine them and hand them on."
    )
    for command in (add, list_, show, verify, alias, unalias, tag, untag, remove):
        adapters.command(name=command.__name__.rstrip("_"))(command)
    adapters_make.register(adapters)
    app.add_typer(adapters, name="adapters")


def add(
    source: Annotated[
        Path,
        typer.Argument(help="A run, an adapter's directory or a checkpoint of HF PEFT.", show_default=False),
    ],
    name: Annotated[
        str | None, typer.Option(help="What to call it; the directory's name if not given.")
    ] = None,
    move: Annotated[
        bool, typer.Option("--move", help="Take the name from another adapter that has it.")
    ] = False,
    tag: Annotated[
        list[str] | None, typer.Option(help="A tag to give it; may be given several times.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Its base, which is then checked; a checkpoint of HF PEFT needs it."),
    ] = None,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Put a copy of an adapter into the store, which is made if there is none; equal content is kept once."""
    from manytune.store.base import load_base

    called = name if name is not None else _name_of(source)
    loaded = None if base is None else load_base(base)
    entry = store_at(store).add(source, name=called, move=move, tags=tag or (), base=loaded)
    if as_json:
        adapters_output.print_json(adapters_output.summary(entry))
    else:
        typer.echo(f"{called}  {entry.digest[:12]}  {entry.nbytes / 1e6:,.2f} MB")


def list_(
    tag: Annotated[str | None, typer.Option(help="Only those that have this tag.")] = None,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """List the adapters of the store with their sizes and scores."""
    entries = store_at(store).entries(tag=tag)
    if as_json:
        adapters_output.print_json([adapters_output.summary(entry) for entry in entries])
    elif entries:
        adapters_output.print_entries(entries)
    else:
        typer.echo(f"{store}: no adapters" + (f" with the tag {tag}" if tag else ""))


def show(adapter: Adapter, store: Store = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Show an adapter's method, base, template and scores."""
    from manytune.store.adapters import open_adapter

    stored = open_adapter(directory_of(adapter, store))
    described = adapters_output.described(stored)
    if as_json:
        adapters_output.print_json(described)
    else:
        adapters_output.print_described(described, stored)


def verify(
    adapters: Annotated[
        list[str] | None,
        typer.Argument(help="As for show; all of the store's if none is given.", show_default=False),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Also check that they were trained on this base, fit it and change its output: a hub id, a directory, "
            "a .gguf file or embedded."
        ),
    ] = None,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Check adapters: their hashes, NaN or Inf among their values, and with --base whether they fit and do anything.

    Exit status 1 if anything is wrong.
    """
    from manytune.store.base import load_base
    from manytune.store.verification import verify_adapter

    paths = [directory_of(adapter, store) for adapter in adapters or ()]
    if not paths:
        paths = [entry.path for entry in store_at(store).entries()]
    loaded = None if base is None else load_base(base)
    results: list[dict[str, object]] = []
    for path in paths:
        try:
            found = verify_adapter(path, base=loaded)
        except ManytuneError as error:
            results.append({"path": str(path), "error": str(error)})
            typer.echo(f"error: {error}", err=True)
        else:
            results.append(adapters_output.verified(found))
            if not as_json:
                typer.echo(adapters_output.verified_line(found))
    if as_json:
        adapters_output.print_json(results)
    if any("error" in result for result in results):
        raise typer.Exit(1)


def alias(
    adapter: Kept,
    name: Annotated[str, typer.Argument(help="The further name.", show_default=False)],
    move: Annotated[
        bool, typer.Option("--move", help="Take the name from another adapter that has it.")
    ] = False,
    store: Store = DEFAULT_STORE,
) -> None:
    """Call an adapter by one more name."""
    store_at(store).alias(adapter, name, move=move)


def unalias(
    name: Annotated[str, typer.Argument(help="The name to forget.", show_default=False)],
    store: Store = DEFAULT_STORE,
) -> None:
    """Forget a name; the adapter stays."""
    store_at(store).unalias(name)


def tag(
    adapter: Kept,
    tags: Annotated[list[str], typer.Argument(help="The tags.", show_default=False)],
    store: Store = DEFAULT_STORE,
) -> None:
    """Give an adapter tags."""
    store_at(store).tag(adapter, *tags)


def untag(
    adapter: Kept,
    tags: Annotated[list[str], typer.Argument(help="The tags.", show_default=False)],
    store: Store = DEFAULT_STORE,
) -> None:
    """Take tags from an adapter."""
    store_at(store).untag(adapter, *tags)


def remove(
    adapters: Annotated[
        list[str],
        typer.Argument(help="Names in the store, digests or their first digits.", show_default=False),
    ],
    store: Store = DEFAULT_STORE,
) -> None:
    """Remove adapters from the store, with all their names and tags."""
    kept = store_at(store)
    for digest in dict.fromkeys([kept.resolve(adapter) for adapter in adapters]):
        kept.remove(digest)


def _name_of(source: Path) -> str:
    """A run's name, for a run's adapter too."""
    path = source.expanduser().resolve()
    return path.parent.name if path.name == "adapter" else path.name
