"""A method in the layers together with a soft prompt, such as LoRA + prefix: the terms of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from manytune.methods.combined import CombinedConfig
from manytune.methods.config import PeftConfig
from manytune.methods.tuners.soft_prompt_tuner import PROMPT
from manytune.methods.tuners.terms import Adapter, Terms


@dataclass(frozen=True)
class _Part:
    digest: str
    config: PeftConfig
    tensors: Mapping[str, Tensor]


def combined_terms(
    adapter: Adapter, model: nn.Module, terms_of: Callable[[Adapter, nn.Module], Terms]
) -> Terms:
    """The terms of both.

    Args:
        adapter: The combination.
        model: The base.
        terms_of: Gives the terms of one of them.

    Raises:
        ConfigError: One of them can't run in a mixed batch.
    """
    config = adapter.config
    assert isinstance(config, CombinedConfig)
    weights, prompt = config.parts
    others = {name: tensor for name, tensor in adapter.tensors.items() if name != PROMPT}
    own = {name: tensor for name, tensor in adapter.tensors.items() if name == PROMPT}
    in_layers = terms_of(_Part(adapter.digest, weights, others), model)
    before = terms_of(_Part(adapter.digest, prompt, own), model)
    return dataclasses.replace(in_layers, embeddings=before.embeddings, prefix=before.prefix)
