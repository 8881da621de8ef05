"""Soft prompts that the model reads as embeddings before its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from manytune.cache_argument import cache_in
from manytune.errors import ConfigError
from manytune.methods.config import PromptLearningConfig, TaskType
from manytune.methods.tuners.base_layers import require_shape
from manytune.methods.tuners.soft_prompt import PROMPT, SoftPrompt, embeddings_of, in_this_thread
from manytune.methods.tuners.soft_prompt_tuner import PromptTuner
from manytune.methods.tuners.terms import Terms
from manytune.methods.tuners.virtual_tokens import (
    IGNORED,
    bound,
    is_fresh,
    prepend_columns,
    prepend_rows,
    prepend_value,
    shifted_positions,
)


class InputPromptTuner(PromptTuner):
    """A method whose virtual tokens are embeddings that the model reads before its input."""

    def infer_sizes(self, config: PromptLearningConfig) -> None:
        """See `PromptTuner.infer_sizes`: a virtual token is as wide as an embedding."""
        width = embeddings_of(self.model).shape[1]
        if config.token_dim not in (None, width):
            raise ConfigError(
                f"token_dim={config.token_dim}, but {type(self.model).__name__} reads embeddings of size {width}. "
                "Leave token_dim out."
            )
        config.token_dim = width

    def shape(self, config: PromptLearningConfig) -> tuple[int, int]:
        """See `PromptTuner.shape`."""
        assert config.num_virtual_tokens and config.num_transformer_submodules and config.token_dim
        return config.num_virtual_tokens * config.num_transformer_submodules, config.token_dim

    @classmethod
    def prompt_terms(cls, config: PromptLearningConfig, values: Tensor, model: PreTrainedModel) -> Terms:
        """See `PromptTuner.prompt_terms`: what is read, which in an encoder-decoder is the first half."""
        tokens = config.num_virtual_tokens or len(values)
        parts = config.num_transformer_submodules or (2 if model.config.is_encoder_decoder else 1)
        require_shape("virtual tokens", PROMPT, values, (tokens * parts, embeddings_of(model).shape[1]))
        return Terms(embeddings=values[:tokens])

    def hooks(self, model: PreTrainedModel, prompt: SoftPrompt, config: Any) -> list[RemovableHandle]:
        """See `PromptTuner.hooks`."""
        tokens = config.num_virtual_tokens
        reader = model.get_encoder() if model.config.is_encoder_decoder else model
        per_token = config.task_type in (TaskType.CAUSAL_LM, TaskType.TOKEN_CLS)

        def before_reader(module: Any, args: Any, kwargs: Any) -> Any:
            return (), _in_front(module, bound(module, args, kwargs), prompt, tokens, labelled=per_token)

        def before_model(module: Any, args: Any, kwargs: Any) -> Any:
            return (), _behind_encoder(bound(module, args, kwargs), tokens)

        hooks = (
            [(reader, before_reader)] if reader is model else [(model, before_model), (reader, before_reader)]
        )
        return [m.register_forward_pre_hook(in_this_thread(hook), with_kwargs=True) for m, hook in hooks]


def _in_front(
    reader: Any, inputs: dict[str, Any], prompt: SoftPrompt, tokens: int, *, labelled: bool
) -> dict[str, Any]:
    """A call of the module that reads the embeddings, with the virtual tokens before them.

    Once a cache holds them, only the mask and the positions have to know.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    if not is_fresh(cache_in(given)):
        if mask is not None:
            given["attention_mask"] = prepend_columns(mask, tokens)
        if positions is not None:
            given["position_ids"] = shifted_positions(positions, tokens, prepend=False)
        return given
    ids = given.pop("input_ids", None)
    embeddings = given.get("inputs_embeds")
    if embeddings is None:
        embeddings = reader.get_input_embeddings()(ids)
    length = embeddings.shape[1]
    virtual = prompt()[:tokens].to(embeddings.device, embeddings.dtype)
    given["inputs_embeds"] = torch.cat((virtual.expand(embeddings.shape[0], -1, -1), embeddings), dim=1)
    # The model hands its encoder a mask that is wide enough already; generation hands it the input's own.
    if mask is not None and not (isinstance(mask, Tensor) and mask.shape[-1] == tokens + length):
        given["attention_mask"] = prepend_rows(mask, tokens, causal=_is_causal(reader))
    if positions is not None:
        given["position_ids"] = shifted_positions(positions, tokens, prepend=True)
    if "token_type_ids" in given:
        given["token_type_ids"] = prepend_value(given["token_type_ids"], tokens, 0)
    if labelled and "labels" in given:
        given["labels"] = prepend_value(given["labels"], tokens, IGNORED)
    if isinstance(given.get("logits_to_keep"), Tensor):
        given["logits_to_keep"] = given["logits_to_keep"] + tokens
    return given


def _behind_encoder(inputs: dict[str, Any], tokens: int) -> dict[str, Any]:
    """A call of an encoder-decoder whose encoder reads virtual tokens: the decoder may look at them, too."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return inputs
    encoded = inputs.get("encoder_outputs")
    if encoded is not None and encoded[0].shape[1] != tokens + mask.shape[-1]:
        raise ConfigError(
            f"encoder_outputs has {encoded[0].shape[1]} positions; with the soft prompt the encoder gives "
            f"{tokens + mask.shape[-1]}. Pass input_ids instead, so that the encoder reads the prompt."
        )
    return {**inputs, "attention_mask": prepend_columns(mask, tokens)}


def _is_causal(model: nn.Module) -> bool:
    return any(getattr(module, "is_causal", False) is True for module in model.modules())
