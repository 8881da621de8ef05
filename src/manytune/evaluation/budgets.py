"""A forgetting budget: what may be lost, what was, and which system keeps to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Limit:
    """A budget.

    Attributes:
        probe: The probe's name.
        at_most: The share of the base's score that may be lost there.
    """

    probe: str
    at_most: float


@dataclass(frozen=True, slots=True)
class Spent:
    """What one system lost on the probe of a forgetting budget.

    Attributes:
        system: Its name.
        lost: The share of the base's score that it lost; below 0 if it gained.
        low: Lower end of its interval, at 1 - 2 alpha.
        high: Upper end.
        verdict: Whether the loss is shown to be larger than the budget, or smaller.
        validation_loss: Nats per target token on the validation rows of the task; `None` if it has none.
    """

    __pydantic_config__ = _STRICT

    system: str
    lost: float
    low: float | None
    high: float | None
    verdict: Literal["within", "beyond", "cannot tell"]
    validation_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be forgotten, what was, and the system that keeps to it.

    Attributes:
        probe: The probe.
        at_most: The share of the base's score that may be lost there.
        spent: What each system lost.
        chosen: The best one that isn't shown to have lost more; `None` if there is none.
    """

    __pydantic_config__ = _STRICT

    probe: str
    at_most: float
    spent: tuple[Spent, ...]
    chosen: str | None
