"""Another adapter for each sample, in the mixed forward that the engine runs on, too.

The adapters' weights are copied into stacks at each call, since they may have been trained, loaded or scaled in
between: a pass over memory, which is little compared with reading the prompts. The stacks' memory is kept for the next
call: as much as the adapters that were named last take.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base import BASE, Tuner
from manytune.methods.tuners.saved_modules import ModulesToSaveWrapper
from manytune.methods.tuners.terms import Terms
from manytune.mixed.layers import Forward, MixedLayers
from manytune.mixed.owners import Owners
from manytune.mixed.stacks import AdapterStacks, dtype_for, snapshot_of
from manytune.model.row_by_row import for_each_sample

#: The attribute of a tuner that keeps the stacks of its last call.
_STACKS = "_mixed_stacks"


@contextmanager
def mixed_samples(tuner: Tuner, terms: dict[str, Terms], names: Sequence[str]) -> Iterator[None]:
    """Within this context the model applies to each sample the adapter that it names.

    Args:
        tuner: What attaches the adapters.
        terms: The terms of all adapters that are named.
        names: The adapter of each sample, `"__base__"` for none.
    """
    parameter = next(tuner.model.parameters())
    stacks = tuner.__dict__.get(_STACKS)
    if not isinstance(stacks, AdapterStacks) or stacks.device != parameter.device:
        stacks = tuner.__dict__[_STACKS] = AdapterStacks(parameter.device)
    dtype = dtype_for(parameter.dtype)
    stacks.restart([snapshot_of(name, own, dtype) for name, own in terms.items()])
    chosen = stacks.choose(Owners(tuple(None if name == BASE else name for name in names)))
    sources = {p.source for one in chosen.values() for p in one.products if p.source is not None}
    modules, forwards = {}, {}
    for path in {*chosen, *sources}:
        modules[path] = module = tuner.model.get_submodule(path)
        forwards[path] = _base_forward(module)
    # The base's own weights: without what adapters in use have taken over.
    layers = MixedLayers(modules, forwards, prepare=lambda x: for_each_sample(x, len(names)))
    with tuner.using(BASE), layers.applied(chosen):
        try:
            yield
        finally:
            stacks.end_forward()


def _base_forward(module: nn.Module) -> Forward:
    if isinstance(module, AdapterLayer):
        return module.base_layer
    if isinstance(module, ModulesToSaveWrapper):
        return module.original_module
    forward: Forward = type(module).forward.__get__(module)
    return forward
