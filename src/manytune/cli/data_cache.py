"""`manytune data cache`: encoded rows that are kept for the next run."""

from __future__ import annotations

from typing import Annotated

import typer

from manytune.cli.options import AsJson


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all entries.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the encoded rows that train, compare and sweep keep for the next run; they are made again at need."""
    from manytune.cli.outputs.data_cache import entries_as_json, print_entries
    from manytune.cli.outputs.json_output import print_json
    from manytune.data.encoding.encoding_cache import EncodingCache

    kept = EncodingCache()
    entries = kept.clear() if clear else kept.entries()
    if as_json:
        print_json(entries_as_json(kept.directory, entries, removed=clear))
    else:
        print_entries(kept.directory, entries, removed=clear)
