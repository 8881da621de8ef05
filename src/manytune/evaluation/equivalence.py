"""Whether systems are as good as a reference: the record of one equivalence test, and the margin that it is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict

Within = Literal["within", "better", "worse", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Margin:
    """How far from a reference counts as equivalent.

    Attributes:
        reference: The system that the others are compared with; as a rule full fine-tuning.
        share: The margin as a share of its score, such as 0.02.
    """

    reference: str
    share: float


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Two one-sided tests of one system against a reference, by one metric.

    Attributes:
        system: Name of the system.
        reference: Name of the system that it may be equivalent to.
        metric: The metric's name.
        margin: The margin as a share of the reference's score.
        ratio: The system's score as a share of the reference's.
        low: Lower end of the interval of that ratio, at a level of 1 - 2 alpha, as two tests at alpha go with;
            None where none can be given.
        high: Upper end.
        p_value: The larger one of the two tests' p-values, by Holm's correction for all systems.
        verdict: `"within"` if both tests reject; `"better"` or `"worse"` if the whole interval is beyond the margin.
        prompts_needed: How many prompts would show equivalence with a chance of 80% if the systems were equal; None if
            it is shown, if it is shown not to be so, or if no number would do.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    system: str
    reference: str
    metric: str
    margin: float
    ratio: float
    low: float | None
    high: float | None
    p_value: float
    verdict: Within
    prompts_needed: int | None
