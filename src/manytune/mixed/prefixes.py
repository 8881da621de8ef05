"""Prefix tuning in a mixed batch: keys and values that are in the cache before the prompt's."""

from __future__ import annotations

from torch import nn

from manytune.methods.prefix_tuning import PrefixTuningConfig
from manytune.methods.tuners.soft_prompt_tuner import PROMPT
from manytune.methods.tuners.terms import Adapter, Terms, check_shape
from manytune.mixed.prompts import virtual_tokens


def prefix_terms(adapter: Adapter, model: nn.Module) -> Terms:
    """The prefix as the cache holds it.

    Raises:
        ConfigError: It isn't there, or doesn't fit the model.
    """
    config = adapter.config
    assert isinstance(config, PrefixTuningConfig)
    text = model.config.get_text_config()  # type: ignore[union-attr,operator]
    layers: int = text.num_hidden_layers
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    values = virtual_tokens(adapter)
    tokens, written = values.shape[0], config.num_layers or layers
    check_shape("prefix", PROMPT, values, (tokens, written * 2 * heads * size))
    # (tokens, layers, keys or values, heads, size)
    halves = values.view(tokens, written, 2, heads, size)[:, :layers]
    return Terms(prefix=halves.permute(1, 2, 3, 0, 4))
