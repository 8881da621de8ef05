"""Each method's adapters, as the terms that a mixed batch computes; `terms.py` says which terms there are."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from manytune.errors import ConfigError
from manytune.methods.config import PeftType
from manytune.methods.tuners.terms import Adapter, Terms
from manytune.mixed.bottleneck import bottleneck_terms
from manytune.mixed.combined import combined_terms
from manytune.mixed.ia3 import ia3_terms
from manytune.mixed.lora import lora_terms
from manytune.mixed.prefixes import prefix_terms
from manytune.mixed.prompts import prompt_terms

_METHODS: dict[str, Callable[[Adapter, nn.Module], Terms]] = {
    PeftType.LORA: lora_terms,
    PeftType.IA3: ia3_terms,
    PeftType.BOTTLENECK: bottleneck_terms,
    PeftType.PROMPT_TUNING: prompt_terms,
    PeftType.P_TUNING: prompt_terms,
    PeftType.PREFIX_TUNING: prefix_terms,
}


def terms_of(adapter: Adapter, model: nn.Module) -> Terms:
    """An adapter's terms; they share its memory where they can.

    Raises:
        ConfigError: Its method, or something in it, can't run in a mixed batch, or it doesn't fit the model.
    """
    kind = adapter.config.peft_type
    if kind == PeftType.COMBINED:
        return combined_terms(adapter, model, terms_of)
    if kind not in _METHODS:
        known = ", ".join(sorted([*map(str, _METHODS), str(PeftType.COMBINED)]))
        raise ConfigError(
            f"{kind} adapters can't run in a mixed batch; {known} can. Merge it into a model of its own, or "
            "generate with generate_batch."
        )
    return _METHODS[kind](adapter, model)
