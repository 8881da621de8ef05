"""Merging adapters into all layers that carry them, or into none."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from manytune.errors import AdapterError, PeftWarning
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.merging import MergeError, warn_of_dequantizing, warn_of_merge_error
from manytune.methods.tuners.own_tables import OwnTables
from manytune.methods.tuners.tied import refuse_unmergeable


def merged_in(layers: Collection[AdapterLayer]) -> list[str]:
    """The adapters that are merged into any of some layers."""
    return list(dict.fromkeys(name for layer in layers for name in layer.merged_adapters))


@contextmanager
def tables_to_merge(
    tables: OwnTables, layers: Collection[AdapterLayer], names: Sequence[str]
) -> Iterator[None]:
    """Within this context, and from then on unless it raises, the base has the tables of adapters that are merged.

    Raises:
        AdapterError: Others are merged already into a base with other tables.
    """
    if not tables:
        yield
        return
    merged = merged_in(layers)
    late = [name for name in names if name not in merged and tables.of(name)]
    if merged and late:
        raise AdapterError(
            f"Adapters {merged} are merged, and {late} bring embedding tables of their own. Unmerge, then merge all of "
            "them in one call."
        )
    former = tables.names
    tables.use([*merged, *names])
    try:
        yield
    except BaseException:
        tables.use(former)
        raise


def refuse_inexact(layers: Collection[AdapterLayer]) -> None:
    """Refuse to go back to a base whose exact weights aren't kept.

    Raises:
        AdapterError: Adapters are merged in low memory.
    """
    inexact = [layer for layer in layers if layer.merged_inexactly]
    if inexact:
        raise AdapterError(
            f"Can't disable adapters: {inexact[0].merged_adapters} are merged in low memory, so the base's exact "
            "weights aren't there to go back to. Unmerge first; the base is then off by what merging stated."
        )


def merge_layers(
    model: nn.Module,
    layers: Collection[AdapterLayer],
    names: Sequence[str],
    safe_merge: bool,
    *,
    low_memory: bool,
) -> MergeError | None:
    """Merge adapters into the layers of a model that carry them; see `AdapterLayer.merge`.

    Raises:
        AdapterError: A layer refuses, or has a weight that is another module's, too; all are as they were before.
    """
    carrying = [layer for layer in layers if any(map(layer.has_adapter, names))]
    if (
        carrying
        and all(set(names) & set(layer.merged_adapters) for layer in carrying)
        and all(
            not layer.has_adapter(name) or name in layer.merged_adapters
            for layer in carrying
            for name in names
        )
    ):
        warnings.warn("All adapters are already merged, nothing to do.", PeftWarning, stacklevel=4)
        return None
    refuse_unmergeable(model, carrying)
    if low_memory:
        # There is no exact way back from a low-memory merge, so refuse before the first layer changes.
        for layer in carrying:
            layer.check_merge(names, safe_merge=safe_merge)
    warn_of_dequantizing([layer.base_layer for layer in carrying])
    before = [(layer, list(layer.merged_adapters)) for layer in carrying]
    total: MergeError | None = None
    try:
        for layer in carrying:
            error = layer.merge(safe_merge, names, low_memory=low_memory)
            total = error if total is None or error is None else total + error
    except AdapterError:
        # All or nothing: a merge refused at one layer must not stay in the layers before it.
        for layer, merged in before:
            if layer.merged_adapters != merged:
                layer.unmerge()
                if merged:
                    layer.merge(adapter_names=merged, low_memory=low_memory)
        raise
    if total is not None:
        warn_of_merge_error(total)
    return total
