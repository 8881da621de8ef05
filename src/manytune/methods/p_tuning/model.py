"""P-tuning: virtual tokens computed by a small network while they train. arXiv 2103.10385."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from manytune.errors import ConfigError, PeftWarning
from manytune.methods.config import PeftType, PromptLearningConfig
from manytune.methods.registry import Method, register
from manytune.methods.tuners.input_prompt_tuner import InputPromptTuner
from manytune.methods.tuners.soft_prompt import SoftPrompt


class PromptEncoderReparameterizationType(StrEnum):
    """The network that computes the virtual tokens."""

    MLP = "MLP"
    LSTM = "LSTM"


_MLP_LAYERS = 2
_MOST_LAYERS = 100


@dataclass
class PromptEncoderConfig(PromptLearningConfig):
    """P-tuning: prompt tuning with P = f(E), where both the small network f and E train. arXiv 2103.10385.

    f makes the virtual tokens depend on each other, which steadies training. A checkpoint holds P, so that
    inference needs no f.

    Args:
        encoder_reparameterization_type: `"MLP"`: Linear, ReLU, Linear, ReLU, Linear. `"LSTM"`: a bidirectional
            LSTM, then Linear, ReLU, Linear.
        encoder_hidden_size: Their hidden size; by default that of an embedding.
        encoder_num_layers: Layers of the LSTM. The MLP has two hidden layers whatever is set here.
        encoder_dropout: Dropout between the LSTM's layers. The MLP has none.

    Raises:
        ConfigError: The network is unknown or has more layers than any, or its dropout is not a probability.
    """

    encoder_reparameterization_type: str = PromptEncoderReparameterizationType.MLP
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.P_TUNING
        if self.encoder_reparameterization_type not in list(PromptEncoderReparameterizationType):
            raise ConfigError(
                f"encoder_reparameterization_type should be one of {', '.join(PromptEncoderReparameterizationType)}, "
                f"found {self.encoder_reparameterization_type!r}."
            )
        for name in ("encoder_hidden_size", "encoder_num_layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} should be a positive integer, found {value!r}.")
        if self.encoder_num_layers > _MOST_LAYERS:
            raise ConfigError(
                f"encoder_num_layers is at most {_MOST_LAYERS}, found {self.encoder_num_layers:,}; 2 are usual."
            )
        if not 0.0 <= self.encoder_dropout < 1.0:
            raise ConfigError(f"encoder_dropout is a probability below 1, found {self.encoder_dropout!r}.")


class EncodedPrompt(SoftPrompt):
    """Virtual tokens from a network; see `PromptEncoderConfig`."""

    computed: ClassVar[bool] = True

    def __init__(self, tokens: int, width: int, config: PromptEncoderConfig) -> None:
        super().__init__(tokens, width)
        hidden = config.encoder_hidden_size or width
        self.lstm_head: nn.LSTM | None = None
        sizes: tuple[int, ...] = (width, hidden, hidden, width)
        if config.encoder_reparameterization_type == PromptEncoderReparameterizationType.LSTM:
            self.lstm_head = nn.LSTM(
                width,
                hidden,
                num_layers=config.encoder_num_layers,
                dropout=config.encoder_dropout,
                bidirectional=True,
                batch_first=True,
            )
            sizes = (2 * hidden, 2 * hidden, width)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.mlp_head = nn.Sequential(*layers[:-1])

    def forward(self) -> Tensor:
        """See `SoftPrompt.forward`."""
        rows = self.embedding.weight.unsqueeze(0)
        if self.lstm_head is not None:
            rows = self.lstm_head(rows)[0]
        values: Tensor = self.mlp_head(rows).squeeze(0)
        return values


class PromptEncoderModel(InputPromptTuner):
    """P-tuning attached to a model; see `PromptEncoderConfig`."""

    def infer_sizes(self, config: PromptLearningConfig) -> None:
        """See `PromptTuner.infer_sizes`."""
        super().infer_sizes(config)
        assert isinstance(config, PromptEncoderConfig)
        if config.encoder_hidden_size is None:
            config.encoder_hidden_size = config.token_dim

    def build(self, config: PromptEncoderConfig) -> SoftPrompt:
        """See `PromptTuner.build`.

        Warns:
            PeftWarning: An option is set that the chosen network doesn't have.
        """
        if config.encoder_reparameterization_type == PromptEncoderReparameterizationType.MLP:
            unused = {
                "encoder_num_layers": config.encoder_num_layers != _MLP_LAYERS,
                "encoder_dropout": config.encoder_dropout > 0,
            }
            for option in (name for name, is_set in unused.items() if is_set):
                warnings.warn(
                    f"For MLP, the argument `{option}` is ignored: exactly {_MLP_LAYERS} MLP layers are used, without "
                    "dropout. encoder_reparameterization_type='LSTM' has it.",
                    PeftWarning,
                    stacklevel=2,
                )
        return EncodedPrompt(*self.shape(config), config)


register(Method("p-tuning", PeftType.P_TUNING, PromptEncoderConfig, PromptEncoderModel, in_peft=True))
