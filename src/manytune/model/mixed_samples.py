"""Another adapter for each sample, in the mixed forward that the engine runs on, too.

Adapters' weights may have been trained, loaded or scaled since the last call. On a CPU in float32 low-rank updates are
computed from the weights where they are (`mixed/own_updates.py`). All others are copied into stacks at each call: a
pass over memory, which is little compared with reading the prompts. The stacks' memory is kept for the next call: as
much as what was copied last takes.

Without gradients the base multiplies through oneDNN there, in generation with copies of its weights that are kept for
the next call, too (`kernels/fast_layers.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from manytune.kernels.build import prepare_kernels
from manytune.kernels.fast_layers import fast_layers
from manytune.kernels.reordered import ReorderedWeights
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base import BASE, Tuner
from manytune.methods.tuners.base_layers import linear_sizes
from manytune.methods.tuners.saved_modules import ModulesToSaveWrapper
from manytune.methods.tuners.terms import Terms
from manytune.mixed.layer_groups import LayerGroup, group_of, with_same_input
from manytune.mixed.layers import Forward, MixedLayers
from manytune.mixed.own_updates import OwnUpdate, divided
from manytune.mixed.owners import Owners
from manytune.mixed.stacks import AdapterStacks, LayerTerms, dtype_for, snapshot_of
from manytune.model.row_by_row import for_each_sample

#: The attribute of a tuner that keeps the stacks of its last call.
_STACKS = "_mixed_stacks"
#: And the one that keeps copies of the base's weights.
_REORDERED = "_reordered_weights"


def reordered_weights(tuner: Tuner) -> ReorderedWeights:
    """The copies of the base's weights that are kept for a tuner's next call, none at first."""
    kept: ReorderedWeights = tuner.__dict__.setdefault(_REORDERED, ReorderedWeights())
    return kept


@contextmanager
def mixed_samples(
    tuner: Tuner, terms: dict[str, Terms], names: Sequence[str], reordered: ReorderedWeights | None = None
) -> Iterator[None]:
    """Within this context the model applies to each sample the adapter that it names.

    Args:
        tuner: What attaches the adapters.
        terms: The terms of all adapters that are named.
        names: The adapter of each sample, `"__base__"` for none.
        reordered: Where copies of the base's weights are kept, which pay if the model runs many times; None for none.
    """
    owners = Owners(tuple(None if name == BASE else name for name in names))
    updates: dict[str, OwnUpdate] = {}
    suits = prepare_kernels(tuner.model) is not None
    if not suits:
        reordered_weights(tuner).clear()
    fast = suits and not torch.is_grad_enabled()
    if fast:
        updates, terms = divided(terms, owners)
    stacks = _stacks(tuner, terms)
    chosen = _with_updates(stacks.choose(owners), updates)
    sources = {p.source for one in chosen.values() for p in one.products if p.source is not None}
    modules, forwards = {}, {}
    for path in {*chosen, *sources}:
        modules[path] = module = tuner.model.get_submodule(path)
        forwards[path] = _base_forward(module)
    layers = MixedLayers(modules, forwards, prepare=lambda x: for_each_sample(x, len(names)))
    # The base's own weights: without what adapters in use have taken over.
    with (
        tuner.using(BASE),
        fast_layers(_families(tuner.model) if fast else [], reordered if fast else None),
        layers.applied(chosen),
    ):
        try:
            yield
        finally:
            stacks.end_forward()


def _stacks(tuner: Tuner, terms: Mapping[str, Terms]) -> AdapterStacks:
    """Stacks with these terms."""
    parameter = next(tuner.model.parameters())
    stacks = tuner.__dict__.get(_STACKS)
    if not isinstance(stacks, AdapterStacks) or stacks.device != parameter.device:
        stacks = tuner.__dict__[_STACKS] = AdapterStacks(parameter.device)
    dtype = dtype_for(parameter.dtype)
    # What is made in inference mode couldn't be written to by a call outside of it.
    with torch.inference_mode(mode=False):
        stacks.restart([snapshot_of(name, own, dtype) for name, own in terms.items()])
    return stacks


def _with_updates(
    chosen: Mapping[str, LayerTerms], updates: Mapping[str, OwnUpdate]
) -> Mapping[str, LayerTerms]:
    """What stacks and the adapters' own weights do, by path of the layer."""
    both = dict(chosen)
    for path, update in updates.items():
        own = both.get(path, LayerTerms())
        both[path] = replace(own, products=[*own.products, update])
    return both


def _families(model: nn.Module) -> list[list[nn.Module]]:
    """The base's linear layers, without those of the adapters; those together that usually read the same tensor."""
    found: dict[LayerGroup, dict[int, nn.Module]] = {}
    stack: list[tuple[str, nn.Module]] = [("", model)]
    seen: set[nn.Module] = set()
    while stack:
        path, module = stack.pop()
        if module in seen:
            continue
        seen.add(module)
        if isinstance(module, AdapterLayer):
            stack.append((path, module.base_layer))
        elif isinstance(module, ModulesToSaveWrapper):
            stack.append((path, module.original_module))
        elif type(module) is nn.Linear or type(module) is Conv1D:
            group, block = group_of(path, *linear_sizes(module))
            found.setdefault(group, {})[block] = module
        else:
            children = ((name, child) for name, child in module._modules.items() if child is not None)
            stack.extend((f"{path}.{name}" if path else name, child) for name, child in children)
    return [
        [found[group][block] for group in family if block in found[group]]
        for family in with_same_input(list(found))
        for block in {block: None for group in family for block in found[group]}
    ]


def _base_forward(module: nn.Module) -> Forward:
    if isinstance(module, AdapterLayer):
        return module.base_layer
    if isinstance(module, ModulesToSaveWrapper):
        return module.original_module
    forward: Forward = type(module).forward.__get__(module)
    return forward
