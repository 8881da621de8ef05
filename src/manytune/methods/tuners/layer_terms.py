"""What methods in the layers have in common when they state their terms: the tensors of a file, sorted by layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base_layers import BaseLayers, refuse_routed
from manytune.methods.tuners.embeddings import base_tables, divided_tables, plain_name
from manytune.methods.tuners.own_tables import Tables
from manytune.methods.tuners.replaced import replaced_terms
from manytune.methods.tuners.saved_targets import lies_in
from manytune.methods.tuners.terms import FILE_PREFIX, INSTEAD, Terms, TermsError


def by_layer(
    tensors: Mapping[str, Tensor], containers: Collection[str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The tensors of an adapter's file by the path of their layer, and there by name; and those of no adapter layer.

    Args:
        tensors: By their names in the file.
        containers: What a method's layers call their tensors; see `AdapterLayer.adapter_layer_names`.

    Returns:
        For example `{"layers.0.q_proj": {"lora_A.weight": A}}` and `{"score.weight": W}`.

    Raises:
        TermsError: A name isn't one of a file, or there are no tensors of adapters.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith(FILE_PREFIX):
            raise TermsError(
                f"expected tensors whose names begin with {FILE_PREFIX!r}, found {name!r}. Is the file one of this "
                "method's adapters?"
            )
        parts = name.removeprefix(FILE_PREFIX).split(".")
        place = next((i for i in reversed(range(len(parts))) if parts[i] in containers), None)
        if place is None:
            others[".".join(parts)] = tensor
        else:
            layers.setdefault(".".join(parts[:place]), {})[".".join(parts[place:])] = tensor
    if not layers and (containers or not others):
        names = ", ".join(f"*.{name}" for name in containers) or "the base's parameters"
        raise TermsError(f"expected tensors named as {names}, found none of them. Is the file whole?")
    return layers, others


def with_own_tables(
    model: nn.Module, config: Any, tensors: Mapping[str, Tensor]
) -> tuple[BaseLayers, Tables, dict[str, Tensor]]:
    """The base that a saved adapter was trained on: with the embedding tables that its file brings.

    Args:
        model: The base; adapters may be attached to it.
        config: The adapter's options.
        tensors: By their names in the file.

    Returns:
        That base; the tables in it that differ from the model's, to be written over the adapter's terms; and the other
        tensors, by their names in the file.

    Raises:
        TermsError: A table has another shape than the base's, or two differ that are one in this base.
    """
    inside = {n.removeprefix(FILE_PREFIX): t for n, t in tensors.items() if n.startswith(FILE_PREFIX)}
    saving = getattr(config, "modules_to_save", None) or ()
    mine = {name for name in inside if plain_name(name) == name and lies_in(name, saving)}
    found, others = divided_tables(model, inside, mine)
    known = base_tables(model) if found else {}
    tables: dict[nn.Parameter, Tensor] = {}
    for name, table in found.items():
        parameter = known[name]
        if table.shape != parameter.shape:
            raise TermsError(
                f"the adapter brings its own {name} of shape {tuple(table.shape)}, and the base's is "
                f"{tuple(parameter.shape)}: it was trained with another vocabulary. Give it a base of its own: call "
                f"model.resize_token_embeddings({table.shape[0]}) on the base, save that, and add the adapter to it."
            )
        if parameter in tables and not _equal(table, tables[parameter]):
            raise TermsError(
                f"the adapter brings two unlike tables, one of them {name}, which are one in this base. Save the base "
                "with tie_word_embeddings=False, and add the adapter to that."
            )
        if not _equal(table, parameter.detach()):
            tables[parameter] = table.detach()
    outside = {name: tensor for name, tensor in tensors.items() if not name.startswith(FILE_PREFIX)}
    return (
        BaseLayers(model, tables),
        tables,
        outside | {f"{FILE_PREFIX}{name}": tensor for name, tensor in others.items()},
    )


def saved_terms(base: BaseLayers, config: Any, tensors: Mapping[str, Tensor]) -> Terms:
    """The terms of what a file holds apart from a method's own tensors.

    Those are modules trained in full.

    Args:
        base: The base.
        config: The adapter's options.
        tensors: By their names in the model.

    Raises:
        TermsError: A tensor isn't such a module's, or a module that was trained in full can't be written in terms.
    """
    saving = getattr(config, "modules_to_save", None) or ()
    trained = {name: tensor for name, tensor in tensors.items() if lies_in(name, saving)}
    for name in tensors.keys() - trained.keys():
        raise TermsError(
            f"{config.peft_type} adapter: its file holds {name!r}, which is neither a tensor of the method, nor of "
            f"modules_to_save={list(saving)}, nor an embedding table. {INSTEAD}"
        )
    return replaced_terms(base, trained, in_place=False)


def _equal(tensor: Tensor, value: Tensor) -> bool:
    return tensor.shape == value.shape and torch.equal(tensor.to(value.device, value.dtype), value)


def live_parts(
    base: BaseLayers, layers: Mapping[str, AdapterLayer], adapter_name: str, config: Any
) -> list[Terms]:
    """What an attached adapter does at each layer now: quickly, since each call with many adapters asks for each.

    Args:
        base: The base as the adapter sees it.
        layers: By path, those without the adapter included.
        adapter_name: The adapter.
        config: Its options.

    Raises:
        TermsError: It has no terms.
    """
    updates, parts = {}, []
    for path, layer in layers.items():
        if not layer.has_adapter(adapter_name):
            continue
        update = layer.live_update(adapter_name)
        if update is None:
            parts.append(layer.live_terms(base.under(layer, path), adapter_name, config))
        else:
            refuse_routed(path)
            updates[path] = update
    return [Terms(updates), *parts]
