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
    ManyKept,
    Store,
    directory_of,
    store_at,
    stored_names,
)
from manytune.cli.options import AsJson
from manytune.errors import ManytuneError, StoreError
from manytune.terminal import visible


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
    whether a server can run them. Of several, one that can't be added stops none of the others; the exit status is then
    1.
    """
    from manytune.cli.outputs.adapters import left_out_line, print_added, summary
    from manytune.cli.outputs.json_output import print_json
    from manytune.cli.outputs.lines import print_error, print_line
    from manytune.store.base import load_base
    from manytune.store.contents import contents_of
    from manytune.store.run_directory import adapter_at
    from manytune.training.progress import Every

    if name is not None and len(sources) > 1:
        raise typer.BadParameter(
            f"it is for one adapter, and there are {len(sources)}. Leave it out; each gets its directory's name.",
            param_hint="--name",
        )
    loaded = None if base is None else load_base(base)
    kept = store_at(store)
    added: list[dict[str, object]] = []
    failed: list[dict[str, object]] = []
    every = Every()
    for place, source in enumerate(sources):
        if every.due():
            typer.echo(f"{place:,} of {len(sources):,} done", err=True)
        called = name if name is not None else _name_of(source)
        try:
            entry = kept.add(
                source, name=called, move=move, tags=tag or (), base=loaded, base_tokenizer=base_tokenizer
            )
        except (ManytuneError, OSError) as error:
            if len(sources) == 1:
                raise
            print_error(str(error) if str(source) in str(error) else f"{source}: {error}")
            failed.append({"path": str(source), "error": str(error)})
            continue
        contents = contents_of(adapter_at(source.expanduser()))
        added.append(summary(entry) | {"left_out": [*contents.tokenizer, *contents.others]})
        if not as_json:
            print_added(called, entry)
            if contents.tokenizer or contents.others:
                print_line(
                    left_out_line(
                        contents,
                        compared=loaded is not None and not base_tokenizer,
                        own_template="chat_template" in (entry.manifest.encoding_options or {}),
                    )
                )
    if as_json:
        print_json([*added, *failed] if len(sources) > 1 else added[0])
    if failed:
        print_error(f"{len(failed):,} of {len(sources):,} couldn't be added; the others are in {store}.")
        raise typer.Exit(1)


def list_(
    tag: Annotated[str | None, typer.Option(help="Only those that have this tag.")] = None,
    wide: Annotated[
        bool,
        typer.Option("--wide", help="Also show digests, all scores, tags and bases, and shorten nothing."),
    ] = False,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """List the adapters of the store: name, method, size, main score and age, a line each.

    The main score is the first that `manytune evaluate` found, or else the validation loss.
    """
    from manytune.cli.outputs.adapter_list import print_list
    from manytune.cli.outputs.adapters import summary
    from manytune.cli.outputs.json_output import print_json
    from manytune.cli.outputs.lines import print_error

    damaged: list[dict[str, object]] = []

    def unreadable(digest: str, error: StoreError) -> None:
        damaged.append({"digest": digest, "error": str(error)})

    kept = store_at(store)
    kept.require_there()
    entries = kept.entries(tag=tag, unreadable=unreadable)
    if as_json:
        print_json([*(summary(entry) for entry in entries), *damaged])
    elif entries:
        print_list(entries, wide=wide)
    else:
        typer.echo(f"{store}: no adapters" + (f" with the tag {tag}" if tag else ""))
    for one in damaged:
        print_error(str(one["error"]))
    if damaged:
        raise typer.Exit(1)


def show(adapter: Adapter, store: Store = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Show an adapter's method, base, template and scores."""
    from manytune.cli.outputs.adapters import description, print_description
    from manytune.cli.outputs.json_output import print_json
    from manytune.store.adapters import open_adapter
    from manytune.store.references import referenced

    meant = referenced(adapter, store)
    stored = open_adapter(meant.directory)
    entry = None if meant.digest is None else store_at(store).entry(meant.digest)
    if as_json:
        print_json(description(stored, entry))
    else:
        print_description(stored, entry)


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
    from manytune.cli.outputs.adapters import print_verification, verification
    from manytune.cli.outputs.json_output import print_json
    from manytune.cli.outputs.lines import print_error
    from manytune.store.base import load_base
    from manytune.store.verification import verify_adapter

    results: list[dict[str, object]] = []

    def failed(path: str, error: ManytuneError) -> None:
        results.append({"path": path, "error": str(error)})
        print_error(str(error))

    found: dict[str, Callable[[], Path]] = {}
    for adapter in adapters or ():
        found[adapter] = partial(Path, directory_of(adapter, store))
    if not found:
        kept = store_at(store)
        kept.require_there()
        entries = kept.entries(unreadable=lambda digest, error: failed(str(kept.directory(digest)), error))
        found = {str(entry): partial(kept.fetch, entry.digest) for entry in entries}
    loaded = None if base is None else load_base(base)
    for name, fetch in found.items():
        try:
            verified = verify_adapter(fetch(), base=loaded)
        except ManytuneError as error:
            failed(name, error)
        else:
            results.append(verification(verified))
            if not as_json:
                print_verification(name, verified)
    if as_json:
        print_json(results)
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
    name: Annotated[
        str, typer.Argument(help="The name to forget.", show_default=False, autocompletion=stored_names)
    ],
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
    adapters: ManyKept,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask first.")] = False,
    store: Store = DEFAULT_STORE,
) -> None:
    """Remove adapters from the store, with all their names and tags. It asks first; without a terminal, give --yes."""
    kept = store_at(store)
    digests = list(dict.fromkeys([kept.resolve(adapter) for adapter in adapters]))
    names = kept.names()
    called = [
        ", ".join(name for name, digest in names.items() if digest == one) or one[:12] for one in digests
    ]
    if not yes:
        if not typer.get_text_stream("stdin").isatty():
            raise typer.BadParameter(
                f"nobody can be asked whether to remove {'; '.join(called)}, since stdin isn't a terminal. Give --yes.",
                param_hint="--yes",
            )
        if not typer.confirm(visible(f"Remove {'; '.join(called)} from {store}?")):
            typer.echo("Nothing was removed.", err=True)
            raise typer.Exit(1)
    for digest, name in zip(digests, called, strict=True):
        kept.remove(digest)
        typer.echo(visible(f"removed {name}"))


def _name_of(source: Path) -> str:
    """A run's name, for a run's adapter too."""
    from manytune.store.run_directory import display_name

    return display_name(source.expanduser().resolve())


COMMANDS = (add, list_, show, verify, alias, unalias, tag, untag, remove)
"""In the order of the help page."""
