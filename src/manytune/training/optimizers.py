"""The optimizers that a recipe can name: transformers' own, by its names or shorter ones."""

from __future__ import annotations

from dataclasses import dataclass

_ADAM = ("betas", "eps")
_MIX = ("betas", "alpha", "t_alpha", "t_beta3", "eps")


@dataclass(frozen=True)
class OptimizerKind:
    """One optimizer.

    Attributes:
        name: What transformers calls it (`TrainingArguments.optim`).
        options: What `training.optimizer_options` may set.
        package: What has to be installed for it, as it is imported; None for nothing more.
        on_shards: Whether it treats each number by itself, with torch's operations, so that a part of a weight will do.
    """

    name: str
    options: tuple[str, ...]
    package: str | None = None
    on_shards: bool = False


_ADAMW = OptimizerKind("adamw_torch_fused", _ADAM, on_shards=True)
_BITS = "bitsandbytes"
_SMALL = "min_8bit_size"
"""Parameters with fewer numbers than this keep a state of 32 bits."""

OPTIMIZERS: dict[str, OptimizerKind] = {
    "adamw": _ADAMW,
    "adamw_torch_fused": _ADAMW,
    "adamw_torch": OptimizerKind("adamw_torch", _ADAM, on_shards=True),
    "adafactor": OptimizerKind(
        "adafactor", ("eps", "clip_threshold", "decay_rate", "beta1", "scale_parameter")
    ),
    "sgd": OptimizerKind("sgd", ("momentum", "dampening", "nesterov"), on_shards=True),
    "adagrad": OptimizerKind("adagrad", ("lr_decay", "initial_accumulator_value", "eps"), on_shards=True),
    "rmsprop": OptimizerKind("rmsprop", ("alpha", "eps", "momentum", "centered"), on_shards=True),
    "adamw_8bit": OptimizerKind("adamw_8bit", (*_ADAM, _SMALL), _BITS),
    "adamw_bnb_8bit": OptimizerKind("adamw_bnb_8bit", (*_ADAM, _SMALL), _BITS),
    "paged_adamw_32bit": OptimizerKind("paged_adamw_32bit", _ADAM, _BITS),
    "paged_adamw_8bit": OptimizerKind("paged_adamw_8bit", (*_ADAM, _SMALL), _BITS),
    "lion": OptimizerKind("lion_32bit", ("betas",), _BITS),
    "lion_32bit": OptimizerKind("lion_32bit", ("betas",), _BITS),
    "lion_8bit": OptimizerKind("lion_8bit", ("betas", _SMALL), _BITS),
    "paged_lion_32bit": OptimizerKind("paged_lion_32bit", ("betas",), _BITS),
    "paged_lion_8bit": OptimizerKind("paged_lion_8bit", ("betas", _SMALL), _BITS),
    "ademamix": OptimizerKind("ademamix", _MIX, _BITS),
    "ademamix_8bit": OptimizerKind("ademamix_8bit", (*_MIX, _SMALL), _BITS),
    "paged_ademamix_32bit": OptimizerKind("paged_ademamix_32bit", _MIX, _BITS),
    "paged_ademamix_8bit": OptimizerKind("paged_ademamix_8bit", (*_MIX, _SMALL), _BITS),
}
"""By the names that recipes use."""
