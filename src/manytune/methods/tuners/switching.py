"""Another adapter for the length of a block: `with model.using("summaries"):`.

Two forms give the same output. Beside the weights, which is the default: the layers are told another name, which costs
microseconds, and each call then pays for the adapter's own products. Merged: W = W0 + s·BA is written into room that
is kept for it, in one pass over the targeted weights, and swapped in; each call then costs what the base alone costs.
W0 is never written to, so afterwards the base is bit-identical, however often this is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from manytune.errors import AdapterError
from manytune.methods.combined import CombinedModel
from manytune.methods.lora.init import starts_from_weight
from manytune.methods.lora.linear import Linear
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base import BASE, Tuner
from manytune.methods.tuners.direct_tuner import DirectTuner
from manytune.methods.tuners.layer_tuner import LayerTuner
from manytune.methods.tuners.soft_prompt_tuner import PromptTuner
from manytune.methods.tuners.tied import refuse_tied


@contextmanager
def using(tuner: Tuner, adapter_names: str | Sequence[str], *, merged: bool) -> Iterator[None]:
    """Within this context the model uses other adapters; what trains, and which are in use, is afterwards as before.

    Args:
        tuner: What attaches the adapters.
        adapter_names: One, or several whose updates add up; `"__base__"` for the base alone.
        merged: Whether to write them into the weights meanwhile.

    Raises:
        AdapterError: A name is unknown; adapters are merged already; several are named, and the method has no sum; or,
            for the merged form, a weight is shared with another module or can't take the adapter.
    """
    given = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    names = [] if given == [BASE] else given
    for name in names:
        tuner._require(name)
    if isinstance(tuner, LayerTuner):
        with _named_in_layers(tuner, names):
            if not merged or tuner.enabled is False:
                yield
                return
            with _written(tuner, names):
                yield
    elif isinstance(tuner, PromptTuner):
        with _prompt(tuner, names):
            yield
    elif isinstance(tuner, CombinedModel):
        with (
            using(tuner.weights, names or BASE, merged=merged),
            using(tuner.prompt, names or BASE, merged=False),
        ):
            yield
    else:
        with _values(tuner, names):
            yield


@contextmanager
def _named_in_layers(tuner: LayerTuner, names: list[str]) -> Iterator[None]:
    layers = tuner._layers.values()
    for layer in layers:
        if layer.merged_adapters:
            raise AdapterError(
                f"{layer.merged_adapters} are merged into the weights, so nothing else can be used. Unmerge first, or "
                "leave the block that merged them."
            )
    former = list(tuner._active)
    with ExitStack() as stack:
        for keeper in tuner._saved.values():
            stack.enter_context(keeper.temporarily(names))
        if any(_takes_weight_over(tuner, name) for name in {*names, *former}):
            for layer in layers:
                stack.enter_context(layer.temporarily(names))
            spaces: list[dict[str, Any]] = []
        else:
            # What `temporarily` does otherwise, without a context for each of a few hundred layers, and without
            # torch.nn.Module's look at each attribute that is set: switching is to cost less than 50 µs.
            spaces = [layer.__dict__ for layer in layers]
        before = [space["_active_adapters"] for space in spaces]
        for space in spaces:
            space["_active_adapters"] = names
        tuner._active[:] = names
        try:
            yield
        finally:
            for space, active in zip(spaces, before, strict=True):
                space["_active_adapters"] = active
            tuner._active[:] = former


def _takes_weight_over(tuner: Tuner, name: str) -> bool:
    """Whether the adapter changes the base's weight while it is in use, as PiSSA's do."""
    config = tuner.peft_config.get(name)
    return config is not None and starts_from_weight(getattr(config, "init_lora_weights", True))


@contextmanager
def _prompt(tuner: PromptTuner, names: list[str]) -> Iterator[None]:
    if len(names) > 1:
        raise AdapterError(f"Only one soft prompt can be in use at a time, found {names}.")
    former = list(tuner._active)
    with ExitStack() as stack:
        for keeper in tuner._saved.values():
            stack.enter_context(keeper.temporarily(names))
        tuner._active[:] = names
        try:
            yield
        finally:
            tuner._active[:] = former


@contextmanager
def _values(tuner: Tuner, names: list[str]) -> Iterator[None]:
    """For methods whose adapters are values of the base's own parameters: these are swapped either way."""
    assert isinstance(tuner, DirectTuner)
    former, training = tuner.active_adapters, [p for p in tuner.model.parameters() if p.requires_grad]
    tuner.set_adapter(names, inference_mode=True)
    try:
        yield
    finally:
        tuner.set_adapter(former, inference_mode=True)
        for parameter in training:
            parameter.requires_grad_(True)


# -- the merged form


_WIDE = (torch.float32, torch.float64)


class _Sum(NamedTuple):
    """W = W0 + s·BA of one of the usual layers, to be written into room that is then swapped in."""

    layer: Linear
    names: list[str]
    parameter: nn.Parameter
    pristine: Tensor
    factors: list[tuple[Tensor, Tensor, float]]
    room: Tensor


@contextmanager
def _written(tuner: LayerTuner, names: list[str]) -> Iterator[None]:
    room: dict[str, Tensor | None] = tuner.__dict__.setdefault("_merging_room", {})
    carrying = [
        (path, layer, own) for path, layer in tuner._layers.items() if (own := _carried(layer, names))
    ]
    if any(path not in room for path, _, _ in carrying):
        refuse_tied(tuner.model, [layer for _, layer, _ in carrying])
    # Everything is looked up before anything is computed: between two products these small objects would have left the
    # processor's cache, and copying a few hundred weights takes no more than some milliseconds.
    sums: list[_Sum] = []
    for path, layer, own in carrying:
        one = _sum(layer, own, room.get(path))
        room[path] = one.room if one else None
        if one:
            sums.append(one)
    try:
        with torch.no_grad():
            _write(sums)
            for path, layer, own in carrying:
                if room[path] is None:
                    layer.merge(adapter_names=own)
        yield
    finally:
        for one in sums:
            space = one.layer.__dict__
            if space["merged_adapters"] is one.names and not one.layer._shifts:
                one.parameter.data = one.pristine
                space["_pristine"], space["merged_adapters"] = {}, []
        for _, layer, _ in carrying:
            if layer.merged_adapters:
                layer.unmerge()


def _carried(layer: AdapterLayer, names: list[str]) -> list[str]:
    if isinstance(layer, Linear):
        carried = layer._modules["lora_A"]._modules  # type: ignore[union-attr]
        return [name for name in names if name in carried]
    return [name for name in names if layer.has_adapter(name)]


def _sum(layer: AdapterLayer, names: list[str], room: Tensor | None) -> _Sum | None:
    """What is to be added up in one layer, in room from an earlier switch if that fits; None for an unusual layer.

    For the usual layers this leads to what `AdapterLayer.merge` does without what that costs.
    """
    # PiSSA's adapters shift the weight as well; DoRA's scale it.
    if type(layer) is not Linear or layer._shifts:
        return None
    parameter: Any = _weight(layer, "base_layer")
    pristine: Tensor = parameter.data
    dtype = pristine.dtype
    if dtype not in _WIDE:  # there the sum is to be rounded once, which `merge` does
        return None
    factors: Any = []
    for name in names:
        a, b = _weight(layer, "lora_A", name), _weight(layer, "lora_B", name)
        if layer.use_dora[name] or layer.lora_bias[name] or a is None or a.dtype is not dtype:
            return None
        factors.append((a, b, layer.scaling[name]))
    if (
        room is None
        or room.shape != pristine.shape
        or room.dtype is not dtype
        or room.device != pristine.device
    ):
        room = torch.empty_like(pristine)
    return _Sum(layer, names, parameter, pristine, factors, room)


def _write(sums: list[_Sum]) -> None:
    for one in sums:
        start = one.pristine
        for a, b, scaling in one.factors:
            left, right = (a.t(), b.t()) if one.layer.fan_in_fan_out else (b, a)
            start = torch.addmm(start, left, right, alpha=scaling, out=one.room)
    for one in sums:
        one.parameter.data = one.room
        one.layer.__dict__.update(
            _pristine={"weight": one.pristine}, _low_memory=False, merged_adapters=one.names
        )


def _weight(layer: AdapterLayer, *path: str) -> nn.Parameter | None:
    """The weight of a module within a layer, looked up in a tenth of the time that its attributes take."""
    module: nn.Module = layer
    for name in path:
        module = module._modules[name]  # type: ignore[assignment]
    return module._parameters["weight"]
