"""What a rank sweep found: one point a rank, the plateau, and how much of each rank was used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import ConfigDict

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Spectrum:
    """How much of its rank a learned change B·A uses, as the mean over all adapted matrices.

    Attributes:
        effective_rank: `exp(-sum p log p)` of the shares `p` of the singular values in their sum (Roy and
            Vetterli 2007): r if all are equal, 1 if there is only one.
        directions: Singular directions that hold 90% of the change's squared norm.
        by_module: `effective_rank` for each kind of matrix, such as `q_proj`.
    """

    __pydantic_config__ = _STRICT

    effective_rank: float
    directions: float
    by_module: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RankPoint:
    """One rank of a sweep.

    Attributes:
        system: Its name in the evaluation.
        rank: The rank.
        targets: Which modules were adapted.
        trainable_params: Parameters that were trained.
        validation_loss: Nats per target token over the validation rows, the mean of all training seeds.
        seed_losses: The same for each seed.
        seconds: Training time, the mean of all seeds.
        p_value: Against the best point, from the paired randomization test on validation rows, with Holm's
            correction; `None` for the best itself.
        spectrum: How much of the rank was used; `None` if it wasn't looked at.
        rows: How many training rows it learned from; `None` for all of them.
    """

    __pydantic_config__ = _STRICT

    system: str
    rank: int
    targets: str
    trainable_params: int
    validation_loss: float
    seed_losses: tuple[float, ...]
    seconds: float | None
    p_value: float | None
    spectrum: Spectrum | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Extrapolated:
    """The loss with more rows than were tried, if the law holds.

    Attributes:
        rows: How many.
        loss: Nats per target token.
        low: Lower end of its interval.
        high: Upper end.
    """

    __pydantic_config__ = _STRICT

    rows: int
    loss: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """The losses of one method with several numbers of rows.

    Attributes:
        label: What they have in common, such as `r=4`.
        rows: The numbers of rows, ascending.
        losses: Validation loss of each.
        exponent: The law's `c`; None without a fit.
        floor: The law's `a`.
        extrapolated: The loss with more rows; empty where the law doesn't fit.
        why_not: Why there is no extrapolation; empty if there is.
    """

    __pydantic_config__ = _STRICT

    label: str
    rows: tuple[int, ...]
    losses: tuple[float, ...]
    exponent: float | None = None
    floor: float | None = None
    extrapolated: tuple[Extrapolated, ...] = ()
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Sweep:
    """A rank sweep.

    Attributes:
        points: In the order of their training rows, and then of their trainable parameters.
        best: The system with the lowest validation loss.
        recommended: The smallest system that isn't significantly worse than the best.
        reason: Why, in a sentence.
        rows: Validation rows that decided, and
        clusters: independent groups of them.
        curves: How the loss falls with more training rows, a rank each; empty if their number wasn't varied.
    """

    __pydantic_config__ = _STRICT

    points: tuple[RankPoint, ...]
    best: str
    recommended: str
    reason: str
    rows: int
    clusters: int
    curves: tuple[LearningCurve, ...] = ()

    def point(self, system: str) -> RankPoint:
        """The point of this system.

        Raises:
            KeyError: There is none.
        """
        return {point.system: point for point in self.points}[system]
