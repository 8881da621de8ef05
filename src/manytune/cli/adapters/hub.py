"""`manytune adapters pull` and `push`: adapters from and to a hub."""

from __future__ import annotations

from typing import Annotated

import typer

from manytune.cli.adapters.arguments import DEFAULT_STORE, Adapter, Store, directory_of, store_at

_Repository = Annotated[
    str, typer.Argument(help="The adapter's id on the hub, such as user/adapter.", show_default=False)
]


def pull(
    repository: _Repository,
    name: Annotated[
        str | None, typer.Option(help="What to call it; the id, such as user/adapter, if not given.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="A branch, a tag or a commit; the main branch if not given.")
    ] = None,
    move: Annotated[
        bool, typer.Option("--move", help="Take the name from another adapter that has it.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(help="Its base, which is then checked; a checkpoint of HF PEFT needs it."),
    ] = None,
    base_tokenizer: Annotated[
        bool,
        typer.Option(
            "--base-tokenizer", help="Use the base's tokenizer and chat template even if it has others."
        ),
    ] = False,
    store: Store = DEFAULT_STORE,
) -> None:
    """Fetch an adapter from the hub and put it into the store."""
    from manytune.cli.outputs.adapters import print_added
    from manytune.store.base import load_base
    from manytune.store.hub import pull_adapter
    from manytune.store.labels import check_name

    called = name if name is not None else repository
    check_name(called)
    found = pull_adapter(repository, revision=revision)
    loaded = None if base is None else load_base(base)
    entry = store_at(store).add(found, name=called, move=move, base=loaded, base_tokenizer=base_tokenizer)
    print_added(called, entry)


def push(
    adapter: Adapter,
    repository: _Repository,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private, if it is made.")
    ] = False,
    store: Store = DEFAULT_STORE,
) -> None:
    """Upload an adapter with its card and its manifest, which holds the recipe with its paths, to the hub."""
    from manytune.store.hub import push_adapter

    typer.echo(push_adapter(directory_of(adapter, store), repository, private=private))


COMMANDS = (pull, push)
"""In the order of the help page."""
