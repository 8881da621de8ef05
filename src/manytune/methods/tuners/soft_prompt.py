"""A soft prompt: one adapter's virtual tokens, and the models that can have one."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from manytune.errors import ConfigError
from manytune.methods.config import PromptLearningConfig, TaskType
from manytune.sharded import whole

#: What a checkpoint calls the virtual tokens.
PROMPT = "prompt_embeddings"


class SoftPrompt(nn.Module):
    """One adapter's virtual tokens.

    A subclass may compute them from `embedding`, and then says so with `computed`. A checkpoint holds them
    computed.

    Args:
        tokens: How many there are.
        width: Their size.
    """

    #: Whether `forward` does more than look up `embedding`.
    computed: ClassVar[bool] = False

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)

    def forward(self) -> Tensor:
        """The virtual tokens, (tokens, width)."""
        return self.embedding.weight


def embeddings_of(model: PreTrainedModel) -> Tensor:
    """A model's table of token embeddings, (vocabulary, width)."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def computed(prompt: SoftPrompt, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
    """A prompt's virtual tokens without gradient, and without dropout in computing them.

    Args:
        prompt: The prompt. If its parameters are sharded, all processes must take part.
        parameters: Whole values of its parameters to compute from, by name; no other process takes part then.
    """
    if not prompt.computed:
        return prompt.embedding.weight if parameters is None else parameters["embedding.weight"]
    own = whole(dict(prompt.named_parameters())) if parameters is None else parameters
    was_training = prompt.training
    with torch.no_grad():
        found: Tensor = functional_call(
            _Uncalled(prompt.eval()), {f"prompt.{name}": tensor for name, tensor in own.items()}, ()
        )
    prompt.train(was_training)
    return found


class _Uncalled(nn.Module):
    """Runs a prompt's own forward, past the hooks by which FSDP2 puts in the weights that it holds."""

    def __init__(self, prompt: SoftPrompt) -> None:
        super().__init__()
        self.prompt = prompt

    def forward(self) -> Tensor:
        return type(self.prompt).forward(self.prompt)


def in_this_thread(hook: Any) -> Any:
    """A hook that does nothing when another thread calls the module: that thread puts in its own prompt."""
    owner = threading.get_ident()

    def guarded(*arguments: Any) -> Any:
        return hook(*arguments) if threading.get_ident() == owner else None

    return guarded


def check_model(model: nn.Module, config: PromptLearningConfig) -> None:
    """Refuse a model that can't have a soft prompt, and infer how many tokens that has.

    Raises:
        ConfigError: It isn't a transformers model, or the configuration's task isn't the model's.
    """
    kind = type(config).__name__
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(
            f"{kind}: virtual tokens need a transformers PreTrainedModel, found {type(model).__name__}."
        )
    if config.task_type is None:
        raise ConfigError(f"{kind}: task_type is needed. One of {', '.join(TaskType)}.")
    if (config.task_type == TaskType.SEQ_2_SEQ_LM) != bool(model.config.is_encoder_decoder):
        found = "an encoder-decoder" if model.config.is_encoder_decoder else "not an encoder-decoder"
        raise ConfigError(
            f"{kind}: task_type is {config.task_type} and {type(model).__name__} is {found}. "
            f"Virtual tokens for an encoder-decoder need {TaskType.SEQ_2_SEQ_LM}, and the other way round."
        )
    for name in (
        "num_virtual_tokens",
        "num_transformer_submodules",
        "num_layers",
        "num_attention_heads",
        "token_dim",
    ):
        value = getattr(config, name)
        given = value is not None or name == "num_virtual_tokens"
        if given and (not isinstance(value, int) or isinstance(value, bool) or value <= 0):
            raise ConfigError(f"{kind}: {name} should be a positive integer, found {value!r}.")
    if config.num_transformer_submodules is None:
        config.num_transformer_submodules = 2 if config.task_type == TaskType.SEQ_2_SEQ_LM else 1
    text = model.config.get_text_config()
    if config.num_layers is None:
        config.num_layers = text.num_hidden_layers
    if config.num_attention_heads is None:
        # A state-space model has none, and only a prefix asks for them.
        config.num_attention_heads = getattr(text, "num_attention_heads", None)
