"""Full fine-tuning as a method: every weight trains. The yardstick that the others are measured against."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from manytune.methods.config import PeftConfig, PeftType
from manytune.methods.registry import Method, register
from manytune.methods.tuners.direct_tuner import UNPACKED, DirectTuner
from manytune.methods.tuners.quantized_layers import packed_parameters, refuse_packed


@dataclass
class FullConfig(PeftConfig):
    """Full fine-tuning.

    Args:
        keep_base: Keep the base's weights aside, so that the adapter can be disabled and detached. Costs one
            copy of the model; False trains the base in place.
    """

    keep_base: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.FULL

    def for_loading(self) -> Self:
        """See `PeftConfig.for_loading`: training in place needs no way back, running a saved adapter does."""
        return dataclasses.replace(self, keep_base=True)


class FullModel(DirectTuner):
    """Full fine-tuning attached to a model; see `FullConfig`."""

    def select(self, config: FullConfig) -> dict[str, nn.Parameter]:
        """Every floating-point parameter; tied ones once.

        Raises:
            ConfigError: The base is packed, so that most of its weights can't train.
        """
        refuse_packed(packed_parameters(self.model), "Full fine-tuning", UNPACKED)
        return {name: p for name, p in self.model.named_parameters() if p.is_floating_point()}

    def keeps_base(self, config: Any) -> bool:
        """See `DirectTuner.keeps_base`."""
        return bool(config.keep_base)


register(Method("full", PeftType.FULL, FullConfig, FullModel, learning_rate=1e-4, on_packed=False))
