"""Another adapter for the length of a block: `with model.using("summaries"):`, for methods that wrap layers.

Two forms give the same output. Next to the weights, which is the default: the layers are given another name, which
costs microseconds, and each call then pays for the adapter's own products. Merged: W = W0 + ΔW is swapped in; each call
then costs what the base alone costs. A layer whose ΔW is a sum of products (`AdapterLayer.merged_sum`) has it written
into room that is kept for it, in one pass over the weight. W0 is never written to, so afterwards the base is
bit-identical, however often this is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manytune.errors import AdapterError
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.merged_sum import MergedSum
from manytune.methods.tuners.saved_modules import ModulesToSaveWrapper


@contextmanager
def named_in_layers(
    layers: Mapping[str, AdapterLayer],
    saved: Mapping[str, ModulesToSaveWrapper],
    active: list[str],
    names: list[str],
    *,
    one_by_one: bool,
) -> Iterator[None]:
    """Within this context layers and modules trained in full use other adapters.

    Args:
        layers: The layers, by path.
        saved: The modules, by path.
        active: The adapters in use; changed in place.
        names: Those to use.
        one_by_one: Whether layers do more than use another name (`AdapterLayer.temporarily`).

    Raises:
        AdapterError: Adapters are merged.
    """
    # The layers' own dictionaries: switching is to cost less than 50 µs, so there is no time for torch.nn.Module's look
    # at each attribute of a few hundred layers, or for a context each.
    spaces: list[dict[str, Any]] = [layer.__dict__ for layer in layers.values()]
    for space in spaces:
        if space["merged_adapters"]:
            raise AdapterError(
                f"{space['merged_adapters']} are merged into the weights, so nothing else can be used. Unmerge first, "
                "or leave the block that merged them."
            )
    former = list(active)
    with ExitStack() as stack:
        for keeper in saved.values():
            stack.enter_context(keeper.temporarily(names))
        if one_by_one:
            for layer in layers.values():
                stack.enter_context(layer.temporarily(names))
            spaces = []
        # What `temporarily` does otherwise.
        before = [space["_active_adapters"] for space in spaces]
        for space in spaces:
            space["_active_adapters"] = names
        active[:] = names
        try:
            yield
        finally:
            for space, own in zip(spaces, before, strict=True):
                space["_active_adapters"] = own
            active[:] = former


class _Planned(NamedTuple):
    """A merged weight that is to be written into room and swapped in."""

    layer: AdapterLayer
    names: list[str]
    sum: MergedSum
    pristine: Tensor
    room: Tensor


@contextmanager
def written(
    layers: Mapping[str, AdapterLayer],
    names: list[str],
    rooms: dict[str, Tensor | None],
    refuse: Callable[[Sequence[AdapterLayer]], None],
) -> Iterator[None]:
    """Within this context adapters are merged into the weights of the layers that carry them.

    Args:
        layers: The layers, by path.
        names: The adapters.
        rooms: Room for merged weights, by path, from earlier calls; None for a layer that merges in another way.
            Filled in.
        refuse: Raises if a layer can't be merged into; asked about layers that aren't in `rooms`.
    """
    carrying = [
        (path, layer, own)
        for path, layer in layers.items()
        if (own := [name for name in names if layer.has_adapter(name)])
    ]
    if any(path not in rooms for path, _, _ in carrying):
        refuse([layer for _, layer, _ in carrying])
    # Everything is looked up before anything is computed: between two products these small objects would have left the
    # processor's cache, and copying a few hundred weights takes no more than some milliseconds.
    planned: list[_Planned] = []
    for path, layer, own in carrying:
        found = layer.merged_sum(own)
        if found is None:
            rooms[path] = None
            continue
        pristine = found.parameter.data
        room = rooms[path] = _fitting(rooms.get(path), pristine)
        planned.append(_Planned(layer, own, found, pristine, room))
    try:
        with torch.no_grad():
            _write(planned)
            for path, layer, own in carrying:
                if rooms[path] is None:
                    layer.merge(adapter_names=own)
        yield
    finally:
        for one in planned:
            space = one.layer.__dict__
            if space["merged_adapters"] is one.names:
                one.sum.parameter.data = one.pristine
                space["_pristine"], space["merged_adapters"] = {}, []
        for _, layer, _ in carrying:
            if layer.merged_adapters:
                layer.unmerge()


def _fitting(room: Tensor | None, weight: Tensor) -> Tensor:
    """The room, if a weight fits into it; new room otherwise."""
    if (
        room is None
        or room.shape != weight.shape
        or room.dtype is not weight.dtype
        or room.device != weight.device
    ):
        return torch.empty_like(weight)
    return room


def _write(planned: list[_Planned]) -> None:
    for one in planned:
        start = one.pristine
        for left, right, factor in one.sum.products:
            start = torch.addmm(start, left, right, alpha=factor, out=one.room)
    for one in planned:
        one.sum.parameter.data = one.room
        # As AdapterLayer.merge leaves it, less what that costs.
        one.layer.__dict__.update(
            _pristine={one.sum.key: one.pristine}, _low_memory=False, merged_adapters=one.names
        )
