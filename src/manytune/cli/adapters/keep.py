"""`manytune adapters`: putting adapters into the store, and looking at them and after them there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from manytune.cli.adapters.arguments import (
    DEFAULT_STORE,
    Adapter,
    Kept,
    Store,
    directory_of,
    store_at,
)
from manytune.cli.options import AsJson
from manytune.errors import ManytuneError


def add(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Runs, adapters' directories, or what HF PEFT, Trainer or TRL wrote.", show_default=False
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="What to call it, if there is one; the directory's name if not given.")
    ] = None,
    move: Annotated[
        bool, typer.Option("--move", help="Take the name from another adapter that has it.")
    ] = False,
    tag: Annotated[
        list[str] | None, typer.Option(help="A tag to give it; may be given several times.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Their base, which is then checked; a checkpoint of HF PEFT needs it."),
    ] = None,
    base_tokenizer: Annotated[
        bool,
        typer.Option(
            "--base-tokenizer",
            help="Use the base's tokenizer and chat template even if others lie next to an adapter.",
        ),
    ] = False,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Put copies of adapters into the store, which is made if there is none; equal content is kept once.

    Files that aren't the adapter's, such as an optimizer's state, are left where they are. With --base it is tried
    whether a server can run them. Exit status 1 if one couldn't be added; the others were.
    """
    from manytune.cli.outputs.adapters import left_out_line, print_added, summary
    from manytune.cli.outputs.json_output import print_json
    from manytune.store.base import load_base
    from manytune.store.contents import contents_of
    from manytune.store.run_directory import adapter_at

    if name is not None and len(sources) > 1:
        raise typer.BadParameter(f"one name, and {len(sources)} adapters.", param_hint="--name")
    loaded = None if base is None else load_base(base)
    kept = store_at(store)
    added: list[dict[str, object]] = []
    for source in sources:
        called = name if name is not None else _name_of(source)
        try:
            entry = kept.add(
                source, name=called, move=move, tags=tag or (), base=loaded, base_tokenizer=base_tokenizer
            )
        except ManytuneError as error:
            if len(sources) == 1:
                raise
            typer.echo(f"error: {error}", err=True)
            continue
        contents = contents_of(adapter_at(source.expanduser()))
        added.append(summary(entry) | {"left_out": [*contents.tokenizer, *contents.others]})
        if not as_json:
            print_added(called, entry)
            if contents.tokenizer or contents.others:
                typer.echo(
                    left_out_line(
                        contents,
                        compared=loaded is not None and not base_tokenizer,
                        own_template="chat_template" in (entry.manifest.encoding_options or {}),
                    )
                )
    if as_json:
        print_json(added if len(sources) > 1 else added[0])
    if len(added) < len(sources):
        raise typer.Exit(1)


def list_(
    tag: Annotated[str | None, typer.Option(help="Only those that have this tag.")] = None,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """List the adapters of the store with their sizes and scores."""
    from manytune.cli.outputs.adapters import print_entries, summary
    from manytune.cli.outputs.json_output import print_json

    entries = store_at(store).entries(tag=tag)
    if as_json:
        print_json([summary(entry) for entry in entries])
    elif entries:
        print_entries(entries)
    else:
        typer.echo(f"{store}: no adapters" + (f" with the tag {tag}" if tag else ""))


def show(adapter: Adapter, store: Store = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Show an adapter's method, base, template and scores."""
    from manytune.cli.outputs.adapters import description, print_description
    from manytune.cli.outputs.json_output import print_json
    from manytune.store.adapters import open_adapter

    stored = open_adapter(directory_of(adapter, store))
    if as_json:
        print_json(description(stored))
    else:
        print_description(stored)


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
    from manytune.cli.outputs.adapters import verification, verification_line
    from manytune.cli.outputs.json_output import print_json
    from manytune.store.base import load_base
    from manytune.store.verification import verify_adapter

    found: dict[str, Callable[[], Path]] = {}
    for path in (directory_of(adapter, store) for adapter in adapters or ()):
        found[str(path)] = partial(Path, path)
    if not found:
        kept = store_at(store)
        found = {str(entry.path): partial(kept.fetch, entry.digest) for entry in kept.entries()}
    loaded = None if base is None else load_base(base)
    results: list[dict[str, object]] = []
    failed = False
    for name, fetch in found.items():
        try:
            verified = verify_adapter(fetch(), base=loaded)
        except ManytuneError as error:
            failed = True
            results.append({"path": name, "error": str(error)})
            typer.echo(f"error: {error}", err=True)
        else:
            results.append(verification(verified))
            if not as_json:
                typer.echo(verification_line(verified))
    if as_json:
        print_json(results)
    if failed:
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
    from manytune.store.run_directory import display_name

    return display_name(source.expanduser().resolve())


COMMANDS = (add, list_, show, verify, alias, unalias, tag, untag, remove)
"""In the order of the help page."""
