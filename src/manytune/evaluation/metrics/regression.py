"""Errors and correlations of answers that are numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from manytune.data.labels.numeric_labels import number_in
from manytune.errors import DataError
from manytune.evaluation.metrics.base import Described, Floats, MeanOfItems, number_of_references
from manytune.evaluation.results import Answer

_CONSTANT = 1e-12  # a variance below this share of the mean square is rounding alone


@dataclass(frozen=True, slots=True)
class RootMeanSquaredError(Described):
    """`sqrt(mean of (answer - label)²)`, in the labels' unit. Lower is better."""

    name: str = "rmse"
    label: str = "RMSE"
    bounds: tuple[float, float] = (0.0, float("inf"))
    higher_is_better: bool = False

    def statistics(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Floats:
        """Rows `(squared error, 1)`.

        Raises:
            DataError: An answer or a label isn't a number.
        """
        said, right = numbers_of(self.name, answers, references)
        return np.column_stack([(said - right) ** 2, np.ones(len(said))])

    def aggregate(self, sums: Floats) -> Floats:
        """The root of the mean."""
        result: Floats = np.sqrt(sums[..., 0] / sums[..., 1])
        return result

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """`nrefs:1|read:number`."""
        return _signature(references)


@dataclass(frozen=True, slots=True)
class MeanAbsoluteError(MeanOfItems):
    """Mean of `|answer - label|`, in the labels' unit. Lower is better."""

    name: str = "mae"
    label: str = "MAE"
    bounds: tuple[float, float] = (0.0, float("inf"))
    higher_is_better: bool = False

    def scores(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Sequence[float]:
        """Each item's error.

        Raises:
            DataError: An answer or a label isn't a number.
        """
        said, right = numbers_of(self.name, answers, references)
        errors: list[float] = np.abs(said - right).tolist()
        return errors

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """`nrefs:1|read:number`."""
        return _signature(references)


@dataclass(frozen=True, slots=True)
class Pearson(Described):
    """Pearson's correlation of answers and labels, from -1 to 1; 0 if all answers, or all labels, are the same."""

    name: str = "pearson"
    label: str = "Pearson's r"
    bounds: tuple[float, float] = (-1.0, 1.0)

    def statistics(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Floats:
        """Rows `(1, x, y, x², y², xy)`, both from the labels' mean.

        Raises:
            DataError: An answer or a label isn't a number.
        """
        said, right = numbers_of(self.name, answers, references)
        x, y = said - right.mean(), right - right.mean()
        return np.column_stack([np.ones(len(x)), x, y, x * x, y * y, x * y])

    def aggregate(self, sums: Floats) -> Floats:
        """The correlation of the items that were summed."""
        count, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
        of_x, of_y = count * xx - x * x, count * yy - y * y
        varies = (of_x > _CONSTANT * count * xx) & (of_y > _CONSTANT * count * yy)
        root = np.sqrt(np.where(varies, of_x * of_y, 1.0))
        result: Floats = np.clip(np.where(varies, (count * xy - x * y) / root, 0.0), -1.0, 1.0)
        return result

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """`nrefs:1|read:number|constant:0`."""
        return f"{_signature(references)}|constant:0"


@dataclass(frozen=True, slots=True)
class Spearman(Described):
    """Spearman's rank correlation of answers and labels, ties by their mean rank; 0 as for Pearson's.

    Ranks are of the whole set, so it has no sums over items as it is. An item's score is the correlation plus the
    item's influence on it (Hampel 1974), ranks that it moves included; the mean of these scores is the correlation, and
    its spread over samples is the correlation's, to first order. Intervals and tests use these scores.
    """

    name: str = "spearman"
    label: str = "Spearman's ρ"
    bounds: tuple[float, float] = (-1.0, 1.0)

    def statistics(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Floats:
        """Rows `(correlation + influence, 1)`.

        Raises:
            DataError: An answer or a label isn't a number.
        """
        said, right = numbers_of(self.name, answers, references)
        return np.column_stack([_rank_scores(said, right), np.ones(len(said))])

    def aggregate(self, sums: Floats) -> Floats:
        """The mean, which a sample may carry beyond the bounds."""
        result: Floats = np.clip(sums[..., 0] / sums[..., 1], -1.0, 1.0)
        return result

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """`nrefs:1|read:number|ties:mean|constant:0|interval:influence`."""
        return f"{_signature(references)}|ties:mean|constant:0|interval:influence"


def _rank_scores(x: Floats, y: Floats) -> Floats:
    """An item's influence on Spearman's correlation, plus the correlation itself.

    With mid-distribution ranks R and S from 0 to 1 and `h(a, b) = [a < b] + [a = b]/2`, the covariance of ranks moves
    with item i by `R_i S_i + E_j[h(x_i, x_j) S_j] + E_j[R_j h(y_i, y_j)] - 3 E[R S]`, and R's variance by
    `R_i² + 2 E_j[h(x_i, x_j) R_j] - 3 E[R²]`.
    """
    r, s = _above(x, np.ones(len(x)), below=True), _above(y, np.ones(len(y)), below=True)
    of_r, of_s = r.var(), s.var()
    if min(of_r, of_s) < _CONSTANT:
        return np.zeros(len(x))
    covariance = (r * s).mean() - r.mean() * s.mean()
    rho = covariance / np.sqrt(of_r * of_s)
    moved = r * s + _above(x, s) + _above(y, r) - 3 * (r * s).mean()
    moved_r = r * r + 2 * _above(x, r) - 3 * (r * r).mean()
    moved_s = s * s + 2 * _above(y, s) - 3 * (s * s).mean()
    result: Floats = rho + moved / np.sqrt(of_r * of_s) - rho / 2 * (moved_r / of_r + moved_s / of_s)
    return result


def _above(values: Floats, weights: Floats, *, below: bool = False) -> Floats:
    """For each item the mean over all of the weights of larger values, of equal ones by half; or of smaller ones."""
    _, place = np.unique(values, return_inverse=True)
    totals = np.bincount(place, weights=weights)
    smaller = np.cumsum(totals) - totals
    chosen = smaller if below else totals.sum() - smaller - totals
    result: Floats = ((chosen + totals / 2) / len(values))[place]
    return result


def numbers_of(
    metric: str, answers: Sequence[Answer], references: Sequence[Sequence[str]]
) -> tuple[Floats, Floats]:
    """Answers and labels as numbers; of several references the first.

    Raises:
        DataError: One isn't a number.
    """

    def read(texts: Sequence[str], what: str) -> Floats:
        found = [number_in(text) for text in texts]
        if None in found:
            place = found.index(None)
            raise DataError(
                f"{metric} needs numbers, and the {what} of item {place + 1} is {texts[place][:40]!r}. Leave {metric} "
                "out of the metrics, or leave such items out"
            )
        return np.array(found, dtype=np.float64)

    return read([answer.text for answer in answers], "answer"), read([one[0] for one in references], "label")


def _signature(references: Sequence[Sequence[str]]) -> str:
    return f"nrefs:{number_of_references(references)}|read:number"
