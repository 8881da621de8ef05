"""Weights that two modules share: a merge into the one would change the other."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from manytune.errors import AdapterError
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.targets import base_of, candidates


def refuse_tied(model: nn.Module, layers: Sequence[AdapterLayer]) -> None:
    """Refuse layers of which another module holds the weight too, such as an output head tied to the embedding.

    Raises:
        AdapterError: There is one.
    """
    holders: dict[int, list[str]] = {}
    for path, module in candidates(model):
        for parameter in base_of(module).parameters(recurse=isinstance(module, AdapterLayer)):
            holders.setdefault(id(parameter), []).append(path)
    for layer in layers:
        for parameter in layer.base_layer.parameters():
            if len(holders[id(parameter)]) > 1:
                raise AdapterError(
                    f"Can't merge: {' and '.join(holders[id(parameter)])} share one weight, so an adapter written into "
                    "the one would change the other. Use the adapter unmerged, or load the base with "
                    "tie_word_embeddings=False."
                )
