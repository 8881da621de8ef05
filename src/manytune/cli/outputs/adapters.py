"""What `manytune adapters` prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from manytune.store.adapters import StoredAdapter
    from manytune.store.store import StoreEntry
    from manytune.store.verification import Verification


def print_json(value: object) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def summary(entry: StoreEntry) -> dict[str, Any]:
    """An adapter of the store in a few words."""
    return {
        "id": entry.digest,
        "names": list(entry.names),
        "tags": list(entry.tags),
        "method": entry.manifest.method,
        "base": entry.manifest.base,
        "bytes": entry.nbytes,
        "scores": dict(entry.manifest.scores),
        "created": entry.manifest.created,
        "path": str(entry.path),
    }


def print_entries(entries: Sequence[StoreEntry]) -> None:
    """Print a table of adapters."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for column in ("name", "id", "method", "size", "scores", "tags", "base"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        scores = ", ".join(f"{name} {score:.4g}" for name, score in entry.manifest.scores.items())
        size = f"{entry.nbytes / 1e6:,.2f} MB"
        names, tags = ", ".join(entry.names), ", ".join(entry.tags)
        table.add_row(
            names, entry.digest[:12], entry.manifest.method, size, scores, tags, entry.manifest.base
        )
    Console(highlight=False).print(table)


def described(stored: StoredAdapter) -> dict[str, Any]:
    """All that an adapter says about itself."""
    size = sum(file.stat().st_size for file in stored.path.rglob("*") if file.is_file())
    if stored.manifest is not None:
        content: dict[str, Any] = json.loads(stored.manifest.to_json())
    else:
        content = {"peft": json.loads((stored.path / "adapter_config.json").read_text(encoding="utf-8"))}
    return {"path": str(stored.path), "bytes": size, "note": stored.note, **content}


def print_described(description: dict[str, Any], stored: StoredAdapter) -> None:
    """Print the same as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))

    def add(name: str, value: object) -> None:
        table.add_row(name, Text(str(value), overflow="fold"))

    add("adapter", description["path"])
    add("size", f"{description['bytes'] / 1e6:,.2f} MB")
    if stored.manifest is None:
        add("method", description["peft"].get("peft_type", "?"))
        add("base", description["peft"].get("base_model_name_or_path") or "?")
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
        for name, value in (manifest.encoding_options or {}).items():
            add(f"  {name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        if manifest.combination is not None:
            add("combination", manifest.combination["kind"])
            for one in manifest.combination["adapters"]:
                add(f"  {one['weight']:g} ×", one["adapter"])
        for name, score in manifest.scores.items():
            add(name, f"{score:.4g}")
        add("created", f"{manifest.created} by manytune {manifest.manytune}")
    Console(highlight=False).print(table)


def verified(one: Verification) -> dict[str, Any]:
    """What was checked of an adapter."""
    return {
        "path": str(one.path),
        "files": one.files,
        "tensors": one.tensors,
        "base_checked": one.base_checked,
        "effect": one.effect,
        "note": one.note,
    }


def verified_line(one: Verification) -> str:
    """The same in a line."""
    tensors = f"{one.tensors} tensors are finite"
    files = f"{one.files} files are intact, {tensors}" if one.note is None else f"{tensors}; {one.note}"
    if one.effect is None:
        return f"{one.path}: {files}"
    fits = "the base fits" if one.base_checked else "the tensors fit the base"
    return f"{one.path}: {files}, and {fits}; logits change by up to {one.effect:.3g}"
