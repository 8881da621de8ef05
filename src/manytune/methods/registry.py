"""The methods there are. A new method is one file and one line here."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from manytune.errors import ConfigError
from manytune.methods.adalora.config import AdaLoraConfig
from manytune.methods.adalora.model import AdaLoraModel
from manytune.methods.bottleneck import BottleneckConfig, BottleneckModel
from manytune.methods.combined import CombinedConfig, CombinedModel
from manytune.methods.config import PeftConfig, PeftType
from manytune.methods.full import FullConfig, FullModel
from manytune.methods.ia3 import IA3Config, IA3Model
from manytune.methods.lora.config import LoraConfig
from manytune.methods.lora.model import LoraModel
from manytune.methods.p_tuning import PromptEncoderConfig, PromptEncoderModel
from manytune.methods.prefix_tuning import PrefixTuningConfig, PrefixTuningModel
from manytune.methods.prompt_tuning import PromptTuningConfig, PromptTuningModel
from manytune.methods.selective import SelectiveConfig, SelectiveModel
from manytune.methods.tuners.base import Method
from manytune.methods.vera import VeraConfig, VeraModel

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("lora", PeftType.LORA, LoraConfig, LoraModel),
        Method("adalora", PeftType.ADALORA, AdaLoraConfig, AdaLoraModel),
        Method("vera", PeftType.VERA, VeraConfig, VeraModel),
        Method("ia3", PeftType.IA3, IA3Config, IA3Model),
        Method("prompt-tuning", PeftType.PROMPT_TUNING, PromptTuningConfig, PromptTuningModel),
        Method("p-tuning", PeftType.P_TUNING, PromptEncoderConfig, PromptEncoderModel),
        Method("prefix-tuning", PeftType.PREFIX_TUNING, PrefixTuningConfig, PrefixTuningModel),
        Method("combined", PeftType.COMBINED, CombinedConfig, CombinedModel),
        Method("bottleneck", PeftType.BOTTLENECK, BottleneckConfig, BottleneckModel),
        Method("selective", PeftType.SELECTIVE, SelectiveConfig, SelectiveModel),
        Method("full", PeftType.FULL, FullConfig, FullModel),
    )
}


def method_of(config: PeftConfig) -> Method:
    """The method that a configuration belongs to.

    Raises:
        ConfigError: There is none of its `peft_type`.
    """
    for method in METHODS.values():
        if method.peft_type == config.peft_type:
            return method
    known = ", ".join(sorted(method.peft_type for method in METHODS.values()))
    raise ConfigError(f"Unknown method: peft_type={config.peft_type!r}. Known: {known}.")


def config_class(peft_type: str) -> type[PeftConfig] | None:
    """The configuration class of a `peft_type`; None if it isn't known."""
    return next((m.config for m in METHODS.values() if m.peft_type == peft_type), None)


def peft_config_from(name: str, **options: Any) -> PeftConfig:
    """A configuration from a recipe's words.

    Args:
        name: The method's name, such as `lora`.
        **options: Its options.

    Raises:
        ConfigError: The method or an option is unknown; the nearest known one is named.
    """
    if name not in METHODS:
        raise ConfigError(
            f"Unknown method {name!r}.{_nearest(name, METHODS)} Known methods: {', '.join(METHODS)}."
        )
    kind = METHODS[name].config
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(f"Method {name!r} has no option {unknown[0]!r}.{_nearest(unknown[0], known)}")
    return kind(**options)


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
