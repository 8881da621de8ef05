"""How `manytune adapters` prints adapters, for people and for programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from manytune.cli.outputs.lines import print_line
from manytune.methods.config import CONFIG_NAME
from manytune.terminal import visible

if TYPE_CHECKING:
    from manytune.store.adapters import StoredAdapter
    from manytune.store.contents import Contents
    from manytune.store.entry import StoreEntry
    from manytune.store.manifest import Manifest
    from manytune.store.verification import Verification

DIGITS = 12
"""What is shown of a digest."""
_LISTED = 8  # files in a message


def summary(entry: StoreEntry) -> dict[str, Any]:
    """An adapter of the store in a few words."""
    return {
        "digest": entry.digest,
        "names": list(entry.names),
        "tags": list(entry.tags),
        "method": entry.manifest.method,
        "base": entry.manifest.base,
        "bytes": entry.nbytes,
        "scores": dict(entry.manifest.scores),
        "created": entry.manifest.created,
        "unservable": entry.manifest.unservable,
        "path": str(entry.path) if entry.is_here else None,
    }


def print_added(name: str, entry: StoreEntry) -> None:
    """Print what an adapter is called now, and why a server can't run it if it can't."""
    typer.echo(f"{name}  {entry.digest[:DIGITS]}  {megabytes(entry.nbytes)}")
    if entry.manifest.unservable is not None:
        print_line(f"  can't be served: {entry.manifest.unservable}")


def left_out_line(contents: Contents, *, compared: bool, own_template: bool = False) -> str:
    """What of a directory wasn't kept, in a line.

    Args:
        contents: What is in it.
        compared: Whether its tokenizer was compared with the base's.
        own_template: Whether it has a chat template of its own, which is kept.
    """
    parts = []
    if contents.tokenizer:
        how = "the base's" if compared else "not compared; the base's is used"
        if own_template:
            how = "cuts text as the base's; its chat template is kept"
        parts.append(f"tokenizer ({how}): {', '.join(contents.tokenizer)}")
    if contents.others:
        shown = contents.others[:_LISTED]
        more = len(contents.others) - len(shown)
        parts.append(", ".join(shown) + (f" and {more} more" if more else ""))
    return visible(f"  left out: {'; '.join(parts)}")


def description(stored: StoredAdapter, entry: StoreEntry | None) -> dict[str, Any]:
    """All that an adapter says about itself, and what a store says of it."""
    if stored.manifest is not None:
        content: dict[str, Any] = json.loads(stored.manifest.to_json())
    else:
        content = {"peft": _peft_config(stored)}
    own = {} if entry is None else {"digest": entry.digest, "names": entry.names, "tags": entry.tags}
    return {"path": str(stored.path), "bytes": _size(stored), "note": stored.note, **own, **content}


def print_description(stored: StoredAdapter, entry: StoreEntry | None) -> None:
    """Print the same as a table."""
    table = Table.grid(padding=(0, 2))
    rows: list[tuple[str, Any]] = []
    if entry is not None:
        rows += [("name", ", ".join(entry.names) or "none"), ("digest", entry.digest[:DIGITS])]
        rows += [("tags", ", ".join(entry.tags))] if entry.tags else []
    rows.append(("size", megabytes(_size(stored))))
    if stored.manifest is not None:
        rows += _manifest_rows(stored.manifest)
    else:
        config = _peft_config(stored)
        rows += [
            ("method", config.get("peft_type", "?")),
            ("base", config.get("base_model_name_or_path") or "?"),
            ("note", stored.note),
        ]
    for name, value in rows:
        table.add_row(Text(visible(str(name))), Text(visible(str(value)), overflow="fold"))
    Console(highlight=False).print(table)
    # Outside the table, which would break a path that is to be copied.
    typer.echo(visible(f"directory: {stored.path}"))


def verification(found: Verification) -> dict[str, Any]:
    """What was checked of an adapter."""
    return {
        "path": str(found.path),
        "files": found.files,
        "tensors": found.tensors,
        "base_checked": found.base_checked,
        "effect": found.effect,
        "note": found.note,
        "unservable": found.unservable,
    }


def print_verification(name: str, found: Verification) -> None:
    """Print the same as a sentence."""
    print_line(f"{name}: {_verified(found)}")


def _verified(found: Verification) -> str:
    tensors = f"{found.tensors} tensors are finite"
    files = f"{found.files} files are intact, {tensors}" if found.note is None else f"{tensors}; {found.note}"
    served = "" if found.unservable is None else f"; it can't be served: {found.unservable}"
    if found.effect is None:
        return f"{files}{served}"
    fits = "the base fits" if found.base_checked else "the tensors fit the base"
    return f"{files}, and {fits}; logits change by up to {found.effect:.3g}{served}"


def _manifest_rows(manifest: Manifest) -> list[tuple[str, Any]]:
    options = (manifest.recipe or {}).get("method", {})
    rows: list[tuple[str, Any]] = [
        ("method", ", ".join([manifest.method, *(f"{k}={v}" for k, v in options.items() if k != "name")])),
        ("base", manifest.base),
        ("fingerprint", manifest.fingerprint),
        *(manifest.template or {}).items(),
    ]
    for task, parts in (manifest.templates or {}).items():
        rows += [(f"{task}: {part}", text) for part, text in parts.items()]
    rows.append(("encoding", manifest.encoding or "?"))
    for name, value in (manifest.encoding_options or {}).items():
        rows.append((f"  {name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    if manifest.combination is not None:
        rows.append(("combination", manifest.combination["kind"]))
        rows += [(f"  {one['weight']:g} ×", one["adapter"]) for one in manifest.combination["adapters"]]
    rows += [(name, f"{score:.4g}") for name, score in manifest.scores.items()]
    if manifest.unservable is not None:
        rows.append(("can't be served", manifest.unservable))
    rows.append(("created", f"{manifest.created} by manytune {manifest.manytune}"))
    return rows


def _peft_config(stored: StoredAdapter) -> dict[str, Any]:
    """What HF PEFT's file says of an adapter that has no manifest."""
    content: dict[str, Any] = json.loads((stored.path / CONFIG_NAME).read_text(encoding="utf-8"))
    return content


def _size(stored: StoredAdapter) -> int:
    from manytune.store.contents import contents_of

    return sum((stored.path / name).stat().st_size for name in contents_of(stored.path).files)


def megabytes(size: int) -> str:
    """A size in MB."""
    return f"{size / 1e6:,.2f} MB"
