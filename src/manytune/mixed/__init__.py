"""Each method's adapters, as the terms that a mixed batch computes; `parts.py` says which terms there are."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from manytune.errors import ConfigError
from manytune.methods.config import PeftType
from manytune.methods.tuners.terms import Adapter, Parts
from manytune.mixed.bottleneck import bottleneck_parts
from manytune.mixed.combined import combined_parts
from manytune.mixed.ia3 import ia3_parts
from manytune.mixed.lora import lora_parts
from manytune.mixed.prefixes import prefix_parts
from manytune.mixed.prompts import prompt_parts

_METHODS: dict[str, Callable[[Adapter, nn.Module], Parts]] = {
    PeftType.LORA: lora_parts,
    PeftType.IA3: ia3_parts,
    PeftType.BOTTLENECK: bottleneck_parts,
    PeftType.PROMPT_TUNING: prompt_parts,
    PeftType.P_TUNING: prompt_parts,
    PeftType.PREFIX_TUNING: prefix_parts,
}


def parts_of(adapter: Adapter, model: nn.Module) -> Parts:
    """An adapter's terms; they share its memory where they can.

    Raises:
        ConfigError: Its method, or something in it, can't run in a mixed batch, or it doesn't fit the model.
    """
    kind = adapter.config.peft_type
    if kind == PeftType.COMBINED:
        return combined_parts(adapter, model, parts_of)
    if kind not in _METHODS:
        known = ", ".join(sorted([*map(str, _METHODS), str(PeftType.COMBINED)]))
        raise ConfigError(
            f"{kind} adapters can't run in a mixed batch; {known} can. Merge it into a model of its own, or "
            "generate with generate_batch."
        )
    return _METHODS[kind](adapter, model)
