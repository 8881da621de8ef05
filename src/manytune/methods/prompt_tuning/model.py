"""Prompt tuning: trained embeddings in front of the input's. arXiv 2104.08691."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import torch
from torch import Tensor, nn

from manytune.errors import ConfigError
from manytune.methods.config import PeftType, PromptLearningConfig
from manytune.methods.registry import Method, register
from manytune.methods.tuners.input_prompt_tuner import InputPromptTuner
from manytune.methods.tuners.soft_prompt import SoftPrompt, embeddings_of


class PromptTuningInit(StrEnum):
    """How virtual tokens start: from N(0, 1), from a text's embeddings, or from those of random tokens."""

    RANDOM = "RANDOM"
    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"


@dataclass
class PromptTuningConfig(PromptLearningConfig):
    """Prompt tuning: the model reads [P; E(x)] in place of E(x), and only P trains. arXiv 2104.08691.

    P has `num_virtual_tokens` rows (twice as many for an encoder-decoder, as in HF PEFT's files; the encoder
    reads the first half, and the second is not used).

    Args:
        prompt_tuning_init: See `PromptTuningInit`.
        prompt_tuning_init_text: The text for `TEXT`; repeated or cut to the number of virtual tokens.
        tokenizer_name_or_path: The tokenizer for it: a directory, or an id on a hub.
        tokenizer_kwargs: Options for loading it. `trust_remote_code` is never passed on: a downloaded adapter
            must not be able to run code.

    Raises:
        ConfigError: The text or its tokenizer is missing for `TEXT`, or given for another start.
    """

    prompt_tuning_init: str = PromptTuningInit.RANDOM
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.PROMPT_TUNING
        if self.prompt_tuning_init not in list(PromptTuningInit):
            raise ConfigError(
                f"prompt_tuning_init should be one of {', '.join(PromptTuningInit)}, found {self.prompt_tuning_init!r}."
            )
        if self.prompt_tuning_init == PromptTuningInit.TEXT:
            for option in ("tokenizer_name_or_path", "prompt_tuning_init_text"):
                if getattr(self, option) is None:
                    raise ConfigError(
                        f"When prompt_tuning_init='{PromptTuningInit.TEXT}', {option} can't be None."
                    )
        elif self.tokenizer_kwargs:
            raise ConfigError(
                f"tokenizer_kwargs only valid when using prompt_tuning_init='{PromptTuningInit.TEXT}'."
            )

    @property
    def texts(self) -> frozenset[str]:
        """See `PeftConfig.texts`."""
        return super().texts | {"prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"}

    def for_loading(self) -> Self:
        """See `PeftConfig.for_loading`: how it began is past, and would load a tokenizer."""
        return dataclasses.replace(
            self,
            prompt_tuning_init=PromptTuningInit.RANDOM,
            prompt_tuning_init_text=None,
            tokenizer_kwargs=None,
        )


class PromptTuningModel(InputPromptTuner):
    """Prompt tuning attached to a model; see `PromptTuningConfig`."""

    def build(self, config: PromptTuningConfig) -> SoftPrompt:
        """See `PromptTuner.build`."""
        prompt = SoftPrompt(*self.shape(config))
        if config.prompt_tuning_init != PromptTuningInit.RANDOM:
            table = self.model.get_input_embeddings()
            count = prompt.embedding.num_embeddings
            if config.prompt_tuning_init == PromptTuningInit.TEXT:
                ids = _text_ids(config, count)
            else:
                ids = torch.randint(0, embeddings_of(self.model).shape[0], (count,))
            with torch.no_grad():
                start = table(ids.to(embeddings_of(self.model).device))
            prompt.embedding.weight = nn.Parameter(start.detach().to(torch.float32, copy=True))
        return prompt


def _text_ids(config: PromptTuningConfig, count: int) -> Tensor:
    from transformers import AutoTokenizer

    options = {k: v for k, v in (config.tokenizer_kwargs or {}).items() if k != "trust_remote_code"}
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer_name_or_path, **options)
    ids = list(tokenizer(config.prompt_tuning_init_text)["input_ids"])
    if not ids:
        raise ConfigError(f"prompt_tuning_init_text={config.prompt_tuning_init_text!r} has no tokens.")
    return torch.tensor((ids * -(-count // len(ids)))[:count])


register(
    Method(
        "prompt-tuning",
        PeftType.PROMPT_TUNING,
        PromptTuningConfig,
        PromptTuningModel,
        in_peft=True,
        learning_rate=3e-2,
    )
)
