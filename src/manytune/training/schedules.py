"""The schedules of the learning rate that a recipe can name: transformers' own, by its names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from manytune.training.option_values import OptionValue, choice, number, whole

_MINIMUM = {"min_lr": number(0), "min_lr_rate": number(0)}
_CYCLES = {"num_cycles": number(0)}


@dataclass(frozen=True)
class ScheduleKind:
    """One schedule.

    Attributes:
        name: What transformers calls it (`SchedulerType`).
        options: What `training.lr_scheduler_options` may set, and to what.
        one_of: Options of which exactly one is needed.
        warms_up: Whether it has a warm-up.
        by_validation: Whether it follows the validation loss instead of the steps.
    """

    name: str
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    one_of: tuple[str, ...] = ()
    warms_up: bool = True
    by_validation: bool = False


_CONSTANT = ScheduleKind("constant_with_warmup")
_PLATEAU = {
    "factor": number(0, below=1),
    "patience": whole(0),
    "threshold": number(0),
    "threshold_mode": choice("rel", "abs"),
    "cooldown": whole(0),
    "min_lr": number(0),
    "eps": number(0),
}
_STABLE = {
    "num_decay_steps": number(0),
    "warmup_type": choice("linear", "cosine", "1-sqrt"),
    "decay_type": choice("linear", "cosine", "1-sqrt"),
    "min_lr_ratio": number(0),
    **_CYCLES,
}

SCHEDULES: dict[str, ScheduleKind] = {
    "linear": ScheduleKind("linear"),
    "cosine": ScheduleKind("cosine", _CYCLES),
    "cosine_with_restarts": ScheduleKind("cosine_with_restarts", {"num_cycles": whole(1)}),
    "cosine_with_min_lr": ScheduleKind("cosine_with_min_lr", {**_CYCLES, **_MINIMUM}, tuple(_MINIMUM)),
    "cosine_warmup_with_min_lr": ScheduleKind(
        "cosine_warmup_with_min_lr",
        {**_CYCLES, **_MINIMUM, "warmup_lr_rate": number(0)},
        tuple(_MINIMUM),
    ),
    "polynomial": ScheduleKind("polynomial", {"lr_end": number(0), "power": number(0)}),
    "inverse_sqrt": ScheduleKind("inverse_sqrt", {"timescale": whole(1)}),
    "warmup_stable_decay": ScheduleKind("warmup_stable_decay", _STABLE),
    "constant": _CONSTANT,
    "constant_with_warmup": _CONSTANT,
    "reduce_lr_on_plateau": ScheduleKind(
        "reduce_lr_on_plateau", _PLATEAU, warms_up=False, by_validation=True
    ),
}
"""By the names that recipes use."""

_DECAY_STEPS = "num_decay_steps"
_USUAL_DECAY = 0.1
"""The share of the steps over which `warmup_stable_decay` falls (MiniCPM, arXiv 2404.06395)."""


def schedule_options(name: str, options: Mapping[str, Any], *, steps: int) -> dict[str, Any]:
    """A schedule's options for a training of this length: a share of the steps becomes a number of them.

    Args:
        name: The schedule.
        options: The recipe's `lr_scheduler_options`.
        steps: Optimizer steps in all.
    """
    found = dict(options)
    if _DECAY_STEPS in SCHEDULES[name].options:
        decay = found.get(_DECAY_STEPS, _USUAL_DECAY)
        found[_DECAY_STEPS] = round(decay * steps) if decay < 1 else int(decay)
    return found
