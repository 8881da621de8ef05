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
    if not has_encoder(model):
        return None
    base = base_of(model)
    configs = (getattr(base, "generation_config", None), base.config)
    found = (getattr(config, "decoder_start_token_id", None) for config in configs)
    return next((token for token in found if token is not None), None)


def forced_ids(model: Any) -> tuple[int | None, int | None]:
    """The tokens that an encoder-decoder's generation settings force first in an answer, and at its limit; or None."""
    settings = getattr(base_of(model), "generation_config", None)
    if settings is None or not has_encoder(model):
        return None, None
    last = settings.forced_eos_token_id
    # Of several end tokens the first; transformers leaves the choice among them to the logits.
    return settings.forced_bos_token_id, last[0] if isinstance(last, list) else last


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
