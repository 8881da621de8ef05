"""`PeftMixedModel`: adapters that are used together, switched by lists of names."""

from __future__ import annotations

from typing import Any

from torch import nn

from manytune.errors import ConfigError
from manytune.methods.config import PeftConfig
from manytune.methods.registry import method_of, methods
from manytune.model.peft_model import PeftModel


class PeftMixedModel(PeftModel):
    """A base whose adapters are used several at a time. `get_peft_model(..., mixed=True)` makes one.

    Any `PeftModel` here takes a list in `set_adapter`; this class refuses methods that HF PEFT doesn't mix. Adapters
    of one model have one method; weight methods and soft prompts are combined by `CombinedConfig`.

    Args:
        model: As for `PeftModel`.
        peft_config: As for `PeftModel`; of a method that can be mixed.
        adapter_name: As for `PeftModel`.
        *args: As for `PeftModel`.
        **kwargs: As for `PeftModel`.

    Raises:
        ConfigError: The method can't be mixed.
    """

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig,
        adapter_name: str = "default",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        _check_compatible(peft_config)
        super().__init__(model, peft_config, adapter_name, *args, **kwargs)

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig, *args: Any, **kwargs: Any) -> None:
        """See `PeftModel.add_adapter`.

        Raises:
            ConfigError: The method can't be mixed.
        """
        _check_compatible(peft_config)
        super().add_adapter(adapter_name, peft_config, *args, **kwargs)


def _check_compatible(config: PeftConfig) -> None:
    if not method_of(config).tuner.mixes:
        compatible = [method.peft_type for method in methods().values() if method.tuner.mixes]
        raise ConfigError(
            f"The provided `peft_type` '{config.peft_type}' is not compatible with the `PeftMixedModel`. "
            f"Compatible types are: {', '.join(compatible)}."
        )
