"""Weights that several modules share, such as an output head tied to the embedding."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn

from manytune.errors import AdapterError, PeftWarning
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.offloading import refuse_offloaded
from manytune.methods.tuners.targets import base_of, candidates
from manytune.methods.tuners.token_rows import TokenRows


def refuse_unmergeable(model: nn.Module, layers: Sequence[AdapterLayer]) -> None:
    """Refuse to merge into a weight that another module holds too, or that isn't there to be written to.

    Raises:
        AdapterError: A parameter of one of the layers is such a weight.
    """
    refuse_offloaded(layer.get_base_layer() for layer in layers)
    refuse_tied(model, layers)


def refuse_tied(model: nn.Module, layers: Sequence[AdapterLayer]) -> None:
    """Refuse to merge into a weight that another module holds too, since it would change there.

    Raises:
        AdapterError: A parameter of one of the layers is such a weight.
    """
    holders: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in candidates(model):
        for parameter in base_of(module).parameters(recurse=isinstance(module, AdapterLayer)):
            holders.setdefault(id(parameter), []).append((path, module))
    for layer in layers:
        for parameter in layer.get_base_layer().parameters():
            sharing = holders[id(parameter)]
            if len(sharing) > 1 and not _share_rows([module for _, module in sharing]):
                raise AdapterError(
                    f"Can't merge: {' and '.join(path for path, _ in sharing)} share one weight, so an adapter "
                    "written into the one would change the other. Use the adapter unmerged, or load the base with "
                    "tie_word_embeddings=False."
                )


def _share_rows(modules: Sequence[nn.Module]) -> bool:
    """Whether the modules change alike: the same rows of each are the adapters'."""
    rows = [module.trainable_tokens_delta for module in modules if isinstance(module, TokenRows)]
    return len(rows) == len(modules) and all(one is rows[0] for one in rows)


def say_untied(model: nn.Module) -> None:
    """Let a model's configuration say that input and output embeddings differ, if they do.

    Readers of a saved model that go by `tie_word_embeddings` would else use one of two unlike tables for both.

    Mutates: the configuration, and then modules that shared the input's table: each has its own.

    Warns:
        PeftWarning: They differ.
    """
    get_input, get_output = (
        getattr(model, f"get_{side}_embeddings", lambda: None) for side in ("input", "output")
    )
    first, second = (getattr(module, "weight", None) for module in (get_input(), get_output()))
    config = getattr(model, "config", None)
    if first is None or second is None or first is second or config is None:
        return
    tying = [c for c in (config, config.get_text_config()) if getattr(c, "tie_word_embeddings", False)]
    if not tying:
        return
    for one in tying:
        one.tie_word_embeddings = False
    # Readers tie nothing then, not even BART's encoder and decoder to each other, so each needs a table in the file.
    others = [m for m in model.modules() if m._parameters.get("weight") is first and m is not get_input()]
    for module in others:
        module.register_parameter("weight", nn.Parameter(first.detach().clone(), first.requires_grad))
    warnings.warn(
        "Input and output embeddings differ now, so the model's configuration says tie_word_embeddings=False.",
        PeftWarning,
        stacklevel=5,
    )
