"""Weights that several modules share, such as an output head tied to the embedding."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from manytune.errors import AdapterError
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.targets import base_of, candidates


def refuse_tied(model: nn.Module, layers: Sequence[AdapterLayer]) -> None:
    """Refuse to merge into a weight that another module holds too, since it would change there.

    Raises:
        AdapterError: A parameter of one of the layers is such a weight.
    """
    holders: dict[int, list[str]] = {}
    for path, module in candidates(model):
        for parameter in base_of(module).parameters(recurse=isinstance(module, AdapterLayer)):
            holders.setdefault(id(parameter), []).append(path)
    for layer in layers:
        for parameter in layer.get_base_layer().parameters():
            if len(holders[id(parameter)]) > 1:
                raise AdapterError(
                    f"Can't merge: {' and '.join(holders[id(parameter)])} share one weight, so an adapter "
                    "written into the one would change the other. Use the adapter unmerged, or load the base with "
                    "tie_word_embeddings=False."
                )
