"""How the loss falls with more training rows, and what a power law says of still more of them.

`loss(n) = a + b · n^(-c)` with a, b >= 0 (Hestness et al. 2017, arXiv 1712.00409; Rosenfeld et al. 2020, arXiv
1909.12673). What the fit can't know is in its interval: groups of validation rows are resampled, the same for every
number of rows, and with several training seeds these, too. Where the loss doesn't follow the law, there is no
extrapolation, and a sentence says why.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from manytune.evaluation.metrics.base import Floats
from manytune.evaluation.ranks import Extrapolated, LearningCurve
from manytune.evaluation.records import GroupLoss
from manytune.evaluation.resampling import DEFAULT, Resampling

FACTORS = (2, 4)
"""How many times the largest number of rows is extrapolated to."""

_EXPONENTS = np.geomspace(0.03, 3.0, 80)
_LEAST = 3  # numbers of rows; the law has three parameters
_FITTING = 0.9  # share of the resampled curves that must follow the law


def learning_curve(
    label: str,
    rows: Sequence[int],
    losses: Sequence[Sequence[Sequence[GroupLoss]]],
    *,
    resampling: Resampling = DEFAULT,
) -> LearningCurve:
    """Fit the law, and extrapolate if it fits.

    Args:
        label: What the trainings have in common.
        rows: Numbers of training rows, ascending.
        losses: For each of them and each training seed the loss on each validation group.
        resampling: Confidence level, resamples, and seed.
    """
    sums = np.asarray([[[(one.nll, one.tokens) for one in seed] for seed in cell] for cell in losses])
    observed = _loss(sums.sum(axis=2)).mean(axis=1)
    found = LearningCurve(label, tuple(rows), tuple(map(float, observed)))
    refusal = _refusal(found)
    if refusal:
        return _without(found, refusal)
    resampled = _resampled(sums, resampling)
    parameters = fit(np.asarray(rows, dtype=np.float64), np.vstack([observed, resampled]))
    floor, _, exponent = parameters[0]
    fitting = ~np.isnan(parameters[1:, 0])
    if np.isnan(floor) or fitting.mean() < _FITTING:
        return _without(found, "the losses don't follow a power law")
    errors = np.sqrt(((predict(parameters[:1], rows)[0] - observed) ** 2).mean())
    if errors > 2 * resampled.std(axis=0, ddof=1).max():
        return _without(
            found, f"the losses are {errors:.3f} off the best power law, more than chance explains"
        )
    sizes = [factor * rows[-1] for factor in FACTORS]
    predicted = predict(parameters, sizes)
    tail = (1 - resampling.level) / 2
    ends = np.quantile(predicted[1:][fitting], [tail, 1 - tail], axis=0)
    if (ends[1] - ends[0]).max() > observed[0] - observed[-1]:
        return _without(
            found,
            f"with {FACTORS[-1]} times the rows its interval ({ends[0][-1]:.2f} to {ends[1][-1]:.2f}) is wider than "
            f"all that {rows[-1]:,} rows gained over {rows[0]:,}",
        )
    return LearningCurve(
        label,
        found.rows,
        found.losses,
        float(exponent),
        float(floor),
        tuple(
            Extrapolated(size, float(loss), float(low), float(high))
            for size, loss, low, high in zip(sizes, predicted[0], ends[0], ends[1], strict=True)
        ),
    )


def fit(rows: Floats, losses: Floats) -> Floats:
    """The law's least squares, `a`, `b` and `c`, `[curves, sizes]` to `[curves, 3]`; NaN where none falls and fits.

    `c` is tried on a grid, and for each the other two are linear.
    """
    best = np.full(len(losses), np.inf)
    found = np.full((len(losses), 3), np.nan)
    for exponent in _EXPONENTS:
        falling = rows**-exponent
        centred = falling - falling.mean()
        scale = (losses @ centred) / (centred @ centred)
        floor = losses.mean(axis=1) - scale * falling.mean()
        rest = ((losses - floor[:, None] - scale[:, None] * falling) ** 2).sum(axis=1)
        better = (rest < best) & (scale > 0) & (floor >= 0)
        best[better] = rest[better]
        found[better] = np.column_stack([floor, scale, np.full_like(floor, exponent)])[better]
    return found


def predict(parameters: Floats, rows: Sequence[int]) -> Floats:
    """The law's losses, `[curves, 3]` to `[curves, sizes]`."""
    floor, scale, exponent = parameters.T[..., None]
    result: Floats = floor + scale * np.asarray(rows, dtype=np.float64) ** -exponent
    return result


def curve_sentence(curve: LearningCurve) -> str:
    """What more rows would bring, or why that can't be said."""
    seen = f"from {curve.losses[0]:.3f} with {curve.rows[0]:,} rows to {curve.losses[-1]:.3f} with {curve.rows[-1]:,}"
    start = f"{curve.label}: the validation loss goes {seen}"
    if not curve.extrapolated:
        return f"{start}; no extrapolation, since {curve.why_not}."
    more = ", ".join(
        f"{one.loss:.3f} ({one.low:.3f} to {one.high:.3f}) with {one.rows:,}" for one in curve.extrapolated
    )
    return f"{start}; if its power law (exponent {curve.exponent:.2f}) holds, {more}."


def _refusal(curve: LearningCurve) -> str:
    if len(curve.rows) < _LEAST:
        return f"a power law needs {_LEAST} numbers of rows or more"
    if not np.isfinite(curve.losses).all():
        return "a loss is NaN or Inf"
    if not curve.losses[-1] < curve.losses[0]:
        return "more rows didn't lower the loss"
    return ""


def _without(curve: LearningCurve, reason: str) -> LearningCurve:
    return LearningCurve(curve.label, curve.rows, curve.losses, why_not=reason)


def _loss(sums: Floats) -> Floats:
    result: Floats = sums[..., 0] / sums[..., 1]
    return result


def _resampled(sums: Floats, resampling: Resampling) -> Floats:
    """Losses of resampled groups and seeds, `[sizes, seeds, groups, 2]` to `[resamples, sizes]`."""
    sizes, seeds, groups, _ = sums.shape
    rng = np.random.default_rng(resampling.seed)
    drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=resampling.resamples).astype(np.float64)
    losses = _loss(np.einsum("rg,nsgk->rnsk", drawn, sums))
    if seeds == 1:
        return np.asarray(losses[..., 0])
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=(resampling.resamples, sizes)) / seeds
    return np.asarray((losses * weights).sum(axis=-1))
