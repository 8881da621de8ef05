"""`manytune adapters`: what an adapter's directory says about itself, and whether it is intact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from manytune.store.adapters import StoredAdapter

Directory = Annotated[Path, typer.Argument(help="An adapter's directory.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    adapters = typer.Typer(no_args_is_help=True, help="Look at adapters on disk.")
    adapters.command()(show)
    adapters.command()(verify)
    app.add_typer(adapters, name="adapters")


def show(directory: Directory, as_json: AsJson = False) -> None:
    """Show an adapter's method, base, template and scores."""
    from manytune.store.adapters import open_adapter

    stored = open_adapter(directory)
    described = _described(stored)
    if as_json:
        _print_json(described)
    else:
        _print_table(described, stored)


def verify(
    directory: Directory,
    base: Annotated[
        str | None,
        typer.Option(
            help="Also check that it was trained on this base: a hub id, a directory or a .gguf file."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check an adapter's files against their hashes, and its base; exit status 1 if anything is wrong."""
    from manytune.store.adapters import open_adapter
    from manytune.store.base import load_base

    stored = open_adapter(directory, base=None if base is None else load_base(base))
    files = 0 if stored.manifest is None else len(stored.manifest.files)
    base_checked = base is not None and stored.manifest is not None
    if as_json:
        _print_json(
            {"path": str(stored.path), "files": files, "base_checked": base_checked, "note": stored.note}
        )
    elif stored.note is not None:
        typer.echo(f"{stored.path}: no pickle found, but {stored.note}")
    else:
        typer.echo(
            f"{stored.path}: {files} files are intact" + (", and the base fits" if base_checked else "")
        )


def _described(stored: StoredAdapter) -> dict[str, Any]:
    import json

    size = sum(file.stat().st_size for file in stored.path.rglob("*") if file.is_file())
    if stored.manifest is not None:
        content: dict[str, Any] = json.loads(stored.manifest.to_json())
    else:
        content = {"peft": json.loads((stored.path / "adapter_config.json").read_text(encoding="utf-8"))}
    return {"path": str(stored.path), "bytes": size, "note": stored.note, **content}


def _print_json(value: object) -> None:
    import json

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(described: dict[str, Any], stored: StoredAdapter) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))

    def add(name: str, value: object) -> None:
        table.add_row(name, Text(str(value), overflow="fold"))

    add("adapter", described["path"])
    add("size", f"{described['bytes'] / 1e6:,.2f} MB")
    if stored.manifest is None:
        add("method", described["peft"].get("peft_type", "?"))
        add("base", described["peft"].get("base_model_name_or_path") or "?")
        add("note", stored.note)
    else:
        manifest = stored.manifest
        options = (manifest.recipe or {}).get("method", {})
        add("method", ", ".join([manifest.method, *(f"{k}={v}" for k, v in options.items() if k != "name")]))
        add("base", manifest.base)
        add("fingerprint", manifest.fingerprint)
        for part, text in (manifest.template or {}).items():
            add(part, text)
        for task, parts in (manifest.templates or {}).items():
            for part, text in parts.items():
                add(f"{task}: {part}", text)
        add("encoding", manifest.encoding or "?")
        for name, score in manifest.scores.items():
            add(name, f"{score:.4g}")
        add("created", f"{manifest.created} by manytune {manifest.manytune}")
    Console(highlight=False).print(table)
