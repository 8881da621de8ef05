"""What the recipe's choices among transformers' optimizers and schedules must agree with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from manytune.data.nearest import did_you_mean
from manytune.data.section import kind_of
from manytune.training.optimizers import OPTIMIZERS
from manytune.training.option_values import OptionValue
from manytune.training.schedules import SCHEDULES

LAYOUTS = ("padded", "padding-free", "shared-prefix")
"""The layouts of batches by the names that recipes use; `training.batches.BUILDERS` makes them."""


def one_of(name: str, known: Collection[str]) -> str:
    """A name, if it is known.

    Raises:
        ValueError: It isn't; names all, and the nearest.
    """
    if name not in known:
        raise ValueError(f"expected one of {', '.join(known)}; found {name!r}{did_you_mean(name, known)}")
    return name


def epoch_or_steps(value: object) -> object:
    """`epoch`, or a number of steps.

    Raises:
        ValueError: It is neither.
    """
    if value == "epoch" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"expected epoch, or a number of steps; found {kind_of(value)}")


def check_optimizer_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that the optimizer doesn't have, and values that they can't have.

    Raises:
        ValueError: Names the option.
    """
    _check("optimizer", name, options, OPTIMIZERS[name].options)


def check_schedule(name: str, options: Mapping[str, Any], *, warmup: float) -> None:
    """Refuse options that the schedule doesn't have, values that they can't have, and a warm-up for one that has none.

    Raises:
        ValueError: Names the option.
    """
    kind = SCHEDULES[name]
    _check("lr_scheduler", name, options, kind.options)
    if kind.one_of and len([option for option in kind.one_of if option in options]) != 1:
        raise ValueError(
            f"lr_scheduler {name} needs one of {' and '.join(kind.one_of)} in lr_scheduler_options"
        )
    if warmup and not kind.warms_up:
        raise ValueError(f"lr_scheduler {name} has no warm-up; set warmup to 0")


def _check(key: str, name: str, options: Mapping[str, Any], known: Mapping[str, OptionValue]) -> None:
    for option, value in options.items():
        if option not in known:
            listed = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{key} {name} has no option {option!r}; {listed}{did_you_mean(option, known)}")
        if not known[option].accepts(value):
            raise ValueError(
                f"{key}_options.{option}: expected {known[option].words}; found {kind_of(value)}"
            )
