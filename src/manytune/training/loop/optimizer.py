"""The optimizer of a training: its groups of parameters, and what LoRA+ and LoRA-FA do."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manytune.errors import RunError
from manytune.extras import install_command
from manytune.methods.registry import factor_pairs, method_of
from manytune.methods.tuners.factor_pairs import FactorPair
from manytune.model.state_dicts import find_tuner
from manytune.training.optimizers import OPTIMIZERS
from manytune.training.recipe import TrainingRecipe

_DAMPING = 1e-8
"""What is added to A Aᵀ before it is inverted, as in HF PEFT."""


def check_optimizer(settings: TrainingRecipe) -> None:
    """Refuse an optimizer whose package isn't installed.

    Raises:
        RunError: Names the package and how to install it.
    """
    package = OPTIMIZERS[settings.optimizer].package
    if package is not None and importlib.util.find_spec(package) is None:
        raise RunError(
            f"training.optimizer {settings.optimizer} needs the package {package}. Run: "
            f"{install_command('quant')}, or choose another, such as adamw."
        )


def freeze_first_factors(model: nn.Module, settings: TrainingRecipe) -> None:
    """With LoRA-FA, let A stay as it is.

    Mutates: `requires_grad` of the pairs' first factors.

    Raises:
        RunError: The method has no pairs of factors, or one whose gradient can't be projected.
    """
    if settings.lora_fa:
        for pair in _pairs(model, "lora_fa"):
            if pair.odd is not None:
                raise RunError(
                    f"training.lora_fa takes updates that are B times A alone, and at {pair.path} {pair.odd}. "
                    "Leave it out of the method's targets, or set training.lora_fa to false."
                )
            pair.first.requires_grad_(False)


def parameter_groups(
    model: nn.Module, settings: TrainingRecipe, *, decaying: Collection[str]
) -> list[dict[str, Any]]:
    """What trains, in groups of one learning rate and one weight decay.

    Args:
        model: With its method attached.
        settings: The recipe's training section.
        decaying: The names of parameters that aren't biases or norms.

    Raises:
        RunError: `loraplus_lr_ratio` is set and the method has no pairs of factors.
    """
    ratio = settings.loraplus_lr_ratio
    second = set() if ratio is None else {id(pair.second) for pair in _pairs(model, "loraplus_lr_ratio")}
    neutral_at_zero = _neutral_at_zero(model)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = neutral_at_zero and name in decaying and parameter.dim() > 1
            groups.setdefault((id(parameter) in second, not decays), []).append(parameter)
    rate = settings.learning_rate
    return [
        {
            "params": parameters,
            "lr": rate * ratio if is_second and ratio is not None else rate,
            "weight_decay": 0.0 if kept else settings.weight_decay,
        }
        for (is_second, kept), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]


def project_gradients(optimizer: torch.optim.Optimizer, model: nn.Module, settings: TrainingRecipe) -> None:
    """With LoRA-FA, let the optimizer see B's gradient times (A Aᵀ)⁻¹ / s² (arXiv 2308.03303).

    Of all steps of B alone, that is the one whose s · BA changes the weight most nearly as the full gradient would.

    Mutates: `optimizer`, which calls this before each step, after the gradients were clipped.
    """
    if not settings.lora_fa:
        return
    projections = [(pair.second, _inverse(pair)) for pair in _pairs(model, "lora_fa")]

    def project(*_: Any) -> None:
        for second, inverse in projections:
            if second.grad is not None:
                second.grad = second.grad @ inverse.to(second.grad)

    optimizer.register_step_pre_hook(project)


def _inverse(pair: FactorPair) -> Tensor:
    a = pair.first.detach()
    damped = a @ a.T + _DAMPING * torch.eye(len(a), device=a.device, dtype=a.dtype)  # (r, r)
    inverse: Tensor = torch.linalg.pinv(damped)
    return inverse / pair.scaling**2


def _pairs(model: nn.Module, key: str) -> Sequence[FactorPair]:
    found = factor_pairs(model)
    if not found:
        raise RunError(
            f"training.{key} is for methods that add a product of two factors A and B, such as LoRA; the model has "
            "none that train. Leave it out, or choose another method."
        )
    return found


def _neutral_at_zero(model: nn.Module) -> bool:
    """Whether the method's parameters do nothing at zero."""
    tuner = find_tuner(model)
    return tuner is None or all(method_of(config).decays for config in tuner.peft_config.values())
