"""The terms of an adapter that brings embedding tables of its own, from its terms over such a base.

With T in the place of W, what an adapter does at a layer is a whole weight over the base that others share:

    c ⊙ (T (a ⊙ x) + b) + d + U D x + f = 0 ⊙ (W x + b) + (c ⊙ T ⊙ a + U D) x + (c ⊙ b + d + f)
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from manytune.methods.tuners.base_layers import BaseLayer, BaseLayers
from manytune.methods.tuners.own_tables import Tables
from manytune.methods.tuners.terms import INSTEAD, Factors, Terms, TermsError, Update


@torch.no_grad()
def over_tables(terms: Terms, base: BaseLayers, tables: Tables) -> Terms:
    """Terms over the base, of terms over a base that has some other tables.

    Args:
        terms: Those over the base that has them.
        base: The base.
        tables: The tables, by the parameter that they take the place of.

    Raises:
        TermsError: A table isn't that of a linear layer or an embedding, or the adapter's other terms there don't add
            up with it.
    """
    updates, factors = dict(terms.updates), dict(terms.factors)
    for parameter, table in tables.items():
        if terms.updates and (terms.activation is not None or terms.reads_output):
            raise TermsError(
                "the adapter brings an embedding table of its own next to updates with a nonlinearity; all updates of "
                f"an adapter have one form. {INSTEAD}"
            )
        for layer, name in base.holding(parameter):
            if name != "weight" or not (layer.is_linear or layer.is_embedding):
                raise TermsError(
                    f"{layer.path}.{name}: the adapter brings a table of its own for it, and "
                    f"{type(layer.module).__name__} neither multiplies by it nor looks rows up in it. {INSTEAD}"
                )
            own = factors.get(layer.path, Factors())
            if own.outputs is not None and not own.outputs.any():
                continue  # nothing of the table is left there: the module is trained in full
            updates[layer.path] = _whole(layer, table, updates.get(layer.path), own)
            factors[layer.path] = Factors(outputs=torch.zeros(layer.outputs, device=table.device))
    return dataclasses.replace(terms, updates=updates, factors=factors)


def _whole(layer: BaseLayer, table: Tensor, update: Update | None, own: Factors) -> Update:
    lookup = layer.is_embedding
    scale = layer.embed_scale if lookup else 1.0
    weight = table.t() if lookup or isinstance(layer.module, Conv1D) else table  # (out, in)
    bias = layer.value("bias")
    bias = None if bias is None else bias.to(table.device)
    if update is None and own == Factors():
        return Update(None, weight, scale, up_bias=bias, lookup=lookup)
    if update is not None and (update.source is not None or update.down_bias is not None):
        raise TermsError(
            f"{layer.path}: the adapter brings a table of its own for it, and has an update there that reads something "
            f"else. {INSTEAD}"
        )
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if own.inputs is not None:
        weight = weight * own.inputs
    if own.outputs is not None:
        weight = weight * own.outputs[:, None]
        bias = None if bias is None else bias * own.outputs
    shifts = [] if bias is None else [bias]
    if own.shift is not None:
        shifts.append(own.shift / scale)
    if update is not None:
        product = update.up if update.down is None else update.up @ update.down
        weight = weight + product * (update.scaling / scale)
        if update.up_bias is not None:
            shifts.append(update.up_bias * (update.scaling / scale))
    return Update(None, weight, scale, up_bias=sum(shifts[1:], shifts[0]) if shifts else None, lookup=lookup)
