"""The methods of the matrix: what both libraries have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.parity.bases import BASES, BERT, DISTILBERT, GPT2, LLAMA, Base


@dataclass(frozen=True)
class Method:
    """A method with options that make it interesting.

    Attributes:
        config: Name of its configuration's class, in either library.
        options: Its options.
        second: What a second adapter of it has otherwise.
        bases: What it is tried on.
        soft_prompt: Whether it adds virtual tokens, and nothing to layers.
        exact: Whether its files are the same to the bit; an LSTM's rounding depends on how it is called.
    """

    name: str
    config: str
    options: dict[str, Any] = field(hash=False)
    second: dict[str, Any] = field(default_factory=dict, hash=False)
    bases: tuple[Base, ...] = BASES
    soft_prompt: bool = False
    exact: bool = True

    def options_for(self, base: Base, second: bool = False) -> dict[str, Any]:
        options: dict[str, Any] = {"task_type": base.task, **self.options}
        if self.soft_prompt:
            options |= base.prompt_sizes
        else:
            options["target_modules"] = list(base.targets)
        if self.config == "IA3Config":
            options["feedforward_modules"] = [base.targets[-1]]
        return options | (self.second if second else {})

    def __str__(self) -> str:
        return self.name


def _variant(name: str, *bases: Base, **options: Any) -> Method:
    """A variant of LoRA."""
    second = {"bias": "none"} if "bias" in options else {"r": 4}
    return Method(name, "LoraConfig", _LORA | options, second, bases)


_LORA: dict[str, Any] = {"r": 2, "lora_alpha": 6}
METHODS = (
    Method("lora", "LoraConfig", _LORA, {"r": 3, "lora_alpha": 2}),
    _variant("dora", LLAMA, GPT2, BERT, use_dora=True),
    _variant("rslora", LLAMA, use_rslora=True),
    _variant("pissa", LLAMA, GPT2, init_lora_weights="pissa"),
    _variant("olora", LLAMA, BERT, init_lora_weights="olora"),
    _variant("orthogonal", LLAMA, init_lora_weights="orthogonal"),
    _variant("gaussian", LLAMA, init_lora_weights="gaussian"),
    _variant("biases", GPT2, BERT, bias="lora_only"),
    Method(
        "adalora", "AdaLoraConfig", {"init_r": 3, "target_r": 2, "total_step": 20, "tinit": 2, "tfinal": 4},
        {"init_r": 4},
    ),
    Method("vera", "VeraConfig", {"r": 4}),
    Method("ia3", "IA3Config", {}),
    Method(
        "prompt_tuning", "PromptTuningConfig", {"num_virtual_tokens": 3}, {"num_virtual_tokens": 2},
        soft_prompt=True,
    ),
    Method(
        "p_tuning", "PromptEncoderConfig", {"num_virtual_tokens": 3, "encoder_hidden_size": 12},
        {"num_virtual_tokens": 2}, soft_prompt=True,
    ),
    Method(
        "p_lstm_tuning", "PromptEncoderConfig",
        {"num_virtual_tokens": 3, "encoder_hidden_size": 6, "encoder_reparameterization_type": "LSTM"},
        {"num_virtual_tokens": 2}, (LLAMA, BERT), soft_prompt=True, exact=False,
    ),
    Method(
        "prefix_mlp_tuning", "PrefixTuningConfig",
        {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 6},
        {"num_virtual_tokens": 2}, (LLAMA, BERT), soft_prompt=True,
    ),
    Method(
        "prefix_tuning", "PrefixTuningConfig", {"num_virtual_tokens": 3}, {"num_virtual_tokens": 2},
        tuple(base for base in BASES if base is not DISTILBERT),  # it has no cache
        soft_prompt=True,
    ),
)  # fmt: skip

#: Those that both libraries attach to packed weights.
ON_PACKED = ("lora", "dora", "adalora", "vera", "ia3", "prompt_tuning", "prefix_tuning")
