"""The optimizers that a recipe can name: transformers' own, by its names or shorter ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from manytune.training.option_values import SWITCH, OptionValue, number, numbers, or_nothing, whole

_BETAS = numbers(2, "[0.9, 0.999]", below=1)
_EPS = number(0)
_ADAM = {"betas": _BETAS, "eps": _EPS}
_LION = {"betas": _BETAS}
_STEPS = or_nothing(whole(1))
_MIX = {
    "betas": numbers(3, "[0.9, 0.999, 0.9999]", below=1),
    "alpha": number(0),
    "t_alpha": _STEPS,
    "t_beta3": _STEPS,
    "eps": _EPS,
}
_SMALL = {"min_8bit_size": whole(0)}
"""Parameters with fewer numbers than this keep a state of 32 bits."""


@dataclass(frozen=True)
class OptimizerKind:
    """One optimizer.

    Attributes:
        name: What transformers calls it (`TrainingArguments.optim`).
        options: What `training.optimizer_options` may set, and to what.
        package: What has to be installed for it, as it is imported; None for nothing more.
        on_shards: Whether it treats each number by itself, with torch's operations, so that a part of a weight will do.
    """

    name: str
    options: Mapping[str, OptionValue]
    package: str | None = None
    on_shards: bool = False


_ADAMW = OptimizerKind("adamw_torch_fused", _ADAM, on_shards=True)
_BITS = "bitsandbytes"

OPTIMIZERS: dict[str, OptimizerKind] = {
    "adamw": _ADAMW,
    "adamw_torch_fused": _ADAMW,
    "adamw_torch": OptimizerKind("adamw_torch", _ADAM, on_shards=True),
    "adafactor": OptimizerKind(
        "adafactor",
        {
            "eps": numbers(2, "[1.0e-30, 0.001]"),
            "clip_threshold": number(0),
            "decay_rate": number(),
            "beta1": or_nothing(number(0, below=1)),
            "scale_parameter": SWITCH,
        },
    ),
    "sgd": OptimizerKind(
        "sgd", {"momentum": number(0), "dampening": number(), "nesterov": SWITCH}, on_shards=True
    ),
    "adagrad": OptimizerKind(
        "adagrad",
        {"lr_decay": number(0), "initial_accumulator_value": number(0), "eps": _EPS},
        on_shards=True,
    ),
    "rmsprop": OptimizerKind(
        "rmsprop",
        {"alpha": number(0), "eps": _EPS, "momentum": number(0), "centered": SWITCH},
        on_shards=True,
    ),
    "adamw_8bit": OptimizerKind("adamw_8bit", {**_ADAM, **_SMALL}, _BITS),
    "adamw_bnb_8bit": OptimizerKind("adamw_bnb_8bit", {**_ADAM, **_SMALL}, _BITS),
    "paged_adamw_32bit": OptimizerKind("paged_adamw_32bit", _ADAM, _BITS),
    "paged_adamw_8bit": OptimizerKind("paged_adamw_8bit", {**_ADAM, **_SMALL}, _BITS),
    "lion": OptimizerKind("lion_32bit", _LION, _BITS),
    "lion_32bit": OptimizerKind("lion_32bit", _LION, _BITS),
    "lion_8bit": OptimizerKind("lion_8bit", {**_LION, **_SMALL}, _BITS),
    "paged_lion_32bit": OptimizerKind("paged_lion_32bit", _LION, _BITS),
    "paged_lion_8bit": OptimizerKind("paged_lion_8bit", {**_LION, **_SMALL}, _BITS),
    "ademamix": OptimizerKind("ademamix", _MIX, _BITS),
    "ademamix_8bit": OptimizerKind("ademamix_8bit", {**_MIX, **_SMALL}, _BITS),
    "paged_ademamix_32bit": OptimizerKind("paged_ademamix_32bit", _MIX, _BITS),
    "paged_ademamix_8bit": OptimizerKind("paged_ademamix_8bit", {**_MIX, **_SMALL}, _BITS),
}
"""By the names that recipes use."""
