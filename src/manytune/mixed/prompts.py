"""Prompt tuning and P-tuning in a mixed batch: embeddings that are read before those of the prompt."""

from __future__ import annotations

from torch import Tensor, nn

from manytune.errors import ConfigError
from manytune.methods.tuners.soft_prompt_tuner import PROMPT
from manytune.methods.tuners.terms import Adapter, Terms, check_shape


def prompt_terms(adapter: Adapter, model: nn.Module) -> Terms:
    """The virtual tokens.

    Raises:
        ConfigError: They aren't there, or not as wide as the model's embeddings.
    """
    virtual = virtual_tokens(adapter)
    table = model.get_input_embeddings().weight  # type: ignore[operator]
    check_shape("virtual tokens", PROMPT, virtual, (virtual.shape[0], table.shape[1]))
    return Terms(embeddings=virtual)


def virtual_tokens(adapter: Adapter) -> Tensor:
    """What a checkpoint holds of a soft prompt, (tokens, width).

    Raises:
        ConfigError: It isn't there, or something is beside it.
    """
    other = sorted(set(adapter.tensors) - {PROMPT})
    if other or PROMPT not in adapter.tensors:
        raise ConfigError(
            f"{adapter.config.peft_type} adapter: expected {PROMPT!r} alone, found {', '.join(sorted(adapter.tensors))}"
            "; modules trained in full can't run in a mixed batch. Generate with generate_batch."
        )
    return adapter.tensors[PROMPT]
