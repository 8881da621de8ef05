"""Facts about a model that generation needs, whether or not adapters are attached to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from manytune.errors import DataError
from manytune.model.peft_model import PeftModel


def base_of(model: Any) -> Any:
    """The transformers model inside a model with adapters, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()


def has_virtual_tokens(model: Any) -> bool:
    """Whether an active adapter puts virtual tokens, or keys and values, before the prompt."""
    if not isinstance(model, PeftModel):
        return False
    return any(model.peft_config[name].is_prompt_learning for name in model.tuner.active_adapters)


def device_of(model: Any) -> torch.device:
    """Where the inputs go: the device of the first parameter."""
    device: torch.device = next(model.parameters()).device
    return device


def has_encoder(model: Any) -> bool:
    """Whether the model is an encoder-decoder."""
    return bool(base_of(model).config.is_encoder_decoder)


def start_id(model: Any) -> int | None:
    """The token that an encoder-decoder's answers begin with; None for other models."""
    return _setting(model, "decoder_start_token_id") if has_encoder(model) else None


def forced_ids(model: Any) -> tuple[int | None, int | None]:
    """The tokens that an encoder-decoder's settings force at an answer's beginning, and at its limit; or None."""
    if not has_encoder(model):
        return None, None
    return _setting(model, "forced_bos_token_id"), _setting(model, "forced_eos_token_id")


def _setting(model: Any, name: str) -> int | None:
    """A token that a model's generation settings name, or, as in older checkpoints, its configuration."""
    base = base_of(model)
    for config in (getattr(base, "generation_config", None), base.config):
        value = getattr(config, name, None)
        if isinstance(value, list):  # transformers takes a list of end tokens, of which the first is forced
            value = value[0] if value else None
        if value is not None:
            return int(value)
    return None


def end_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer: the model's (there may be several) and the tokenizer's."""
    base = base_of(model)
    configs = (getattr(base, "generation_config", None), base.config)
    ids = [getattr(config, "eos_token_id", None) for config in configs] + [tokenizer.eos_token_id]
    found: set[int] = set()
    for value in ids:
        if value is not None:
            found.update([value] if isinstance(value, int) else value)
    return frozenset(found)


def check_lengths(model: Any, lengths: Sequence[int], *, new_tokens: int) -> None:
    """Check that no sequence is empty or longer than the model's positions.

    Args:
        model: The model.
        lengths: Lengths of the sequences, in tokens.
        new_tokens: How many tokens are to be generated for each.

    Raises:
        DataError: A sequence is empty or too long.
    """
    limit = getattr(base_of(model).config, "max_position_embeddings", None)
    both = max if has_encoder(model) else sum  # an encoder's positions aren't the decoder's
    for index, length in enumerate(lengths):
        if length == 0:
            raise DataError(f"prompt {index} has no tokens; a model needs at least one to continue from")
        if limit is not None and both((length, new_tokens)) > limit:
            wanted = f"{length} tokens" + (f" and {new_tokens} to generate" if new_tokens else "")
            raise DataError(
                f"sequence {index} has {wanted}, but the model has {limit} positions; "
                "shorten the prompt" + (" or lower max_new_tokens" if new_tokens else "")
            )


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Evaluation mode for the block; afterwards each module is in its former mode, as some may be in `eval` already."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
