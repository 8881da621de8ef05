"""`manytune adapters combine`, `merge` and `export`: what is made out of adapters."""

from __future__ import annotations

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manytune.atomic import require_absent
from manytune.cli.adapters.arguments import DEFAULT_STORE, Adapters, Store, directory_of, name_of, store_at
from manytune.cli.bases import common_base
from manytune.errors import StoreError

if TYPE_CHECKING:
    from manytune.store.adapters import StoredAdapter
    from manytune.store.base import Base

BaseOption = Annotated[
    str | None,
    typer.Option("--base", help="Their base, if it isn't where their manifests say."),
]
Output = Annotated[Path, typer.Option(help="Where to write it; must not exist.")]


class Target(StrEnum):
    """Whom an adapter is exported for."""

    PEFT = "peft"
    MERGED = "merged"
    GGUF = "gguf"
    VLLM = "vllm"


def combine(
    adapters: Adapters,
    name: Annotated[str, typer.Option(help="What to call the combination in the store.")],
    weights: Annotated[
        str | None,
        typer.Option(
            help="One number for each adapter, as 0.7,0.3; a negative one negates. 1 each if not given."
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            help="cat is the exact sum; svd the nearest of a rank; linear, ties, dare_ties and others: see docs."
        ),
    ] = "cat",
    rank: Annotated[
        int | None, typer.Option(help="The rank of the svd kinds; the largest one's if not given.")
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="The share of values that ties, dare and magnitude kinds keep.")
    ] = None,
    base: BaseOption = None,
    store: Store = DEFAULT_STORE,
) -> None:
    """Add the weighted combination of adapters to the store, as a new adapter."""
    from manytune.cli.outputs.adapters import print_added
    from manytune.methods.arithmetic.combination import Combination
    from manytune.store.combining import combine_adapters

    how = Combination(kind, svd_rank=rank, density=density)
    chosen = _numbers(weights, len(adapters))
    stored = _opened(adapters, store)
    loaded = _loaded_base(stored, base)
    with tempfile.TemporaryDirectory() as folder:
        combined = Path(folder) / "combined"
        combine_adapters([one.path for one in stored], chosen, combined, loaded, how)
        entry = store_at(store).add(combined, name=name)
    print_added(name, entry)


def merge(
    adapters: Adapters,
    output: Output,
    base: BaseOption = None,
    store: Store = DEFAULT_STORE,
) -> None:
    """Write the base with adapters in its weights, as a plain transformers model with its tokenizer."""
    _merge(_opened(adapters, store), output, base)
    typer.echo(output)


def export(
    adapters: Adapters,
    to: Annotated[
        Target,
        typer.Option(
            help="peft: a directory for HF PEFT; merged: a plain transformers model; gguf: a LoRA file for llama.cpp; "
            "vllm: adapters with the arguments that serve them."
        ),
    ],
    output: Output,
    base: BaseOption = None,
    store: Store = DEFAULT_STORE,
) -> None:
    """Write an adapter for another program; vllm takes several, merged writes them into one model."""
    from manytune.store.base import load_base, load_config
    from manytune.store.export_gguf import export_gguf
    from manytune.store.exports import export_peft, export_vllm

    stored = _opened(adapters, store)
    if to is Target.VLLM:
        names = [name_of(adapter) for adapter in adapters]
        if len(set(names)) < len(names):
            raise StoreError(f"expected a name of its own for each adapter, found {', '.join(names)}.")
        typer.echo(export_vllm({name: one.path for name, one in zip(names, stored, strict=True)}, output))
        return
    if to is Target.MERGED:
        _merge(stored, output, base)
    elif len(stored) > 1:
        raise StoreError(
            f"--to {to} writes one adapter, found {len(stored)}. Combine them first, or export each."
        )
    elif to is Target.PEFT:
        export_peft(stored[0].path, output)
    else:
        require_absent(output)
        name = base or _base_of(stored)
        export_gguf(stored[0].path, output, load_config(name), lambda: load_base(name).model)
    typer.echo(output)


def _merge(stored: list[StoredAdapter], output: Path, base: str | None) -> None:
    from manytune.store.combining import merge_adapters

    merge_adapters([one.path for one in stored], output, _loaded_base(stored, base))


def _opened(adapters: list[str], store: str) -> list[StoredAdapter]:
    from manytune.store.adapters import open_adapter

    return [open_adapter(directory_of(adapter, store)) for adapter in adapters]


def _loaded_base(stored: list[StoredAdapter], base: str | None) -> Base:
    from manytune.store.base import load_base

    return load_base(base or _base_of(stored))


def _base_of(stored: list[StoredAdapter]) -> str:
    return common_base({str(one.path): None if one.manifest is None else one.manifest.base for one in stored})


def _numbers(weights: str | None, count: int) -> list[float]:
    if weights is None:
        return [1.0] * count
    try:
        numbers = [float(part) for part in weights.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise StoreError(f"--weights: expected {count} numbers with commas between them, found {weights!r}.")
    return numbers


COMMANDS = (combine, merge, export)
"""In the order of the help page."""
