"""How intervals and tests are made, in one record that is handed on."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """How intervals and tests are made.

    Attributes:
        level: Confidence level of the intervals; a test decides at `1 - level`.
        resamples: Bootstrap samples, and randomizations of a test.
        seed: Of both.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    level: float = 0.95
    resamples: int = 10_000
    seed: int = 0

    @property
    def alpha(self) -> float:
        """The significance level of a test."""
        return round(1 - self.level, 10)  # 1 - 0.95 is not 0.05 in binary


DEFAULT = Resampling()
"""95%, 10,000 resamples, seed 0."""
