"""A report's tables of a classification: confusion matrices, and McNemar's tests."""

from __future__ import annotations

from manytune.evaluation.classes import confusions, mcnemar_tests
from manytune.evaluation.quantities import count
from manytune.evaluation.report.tables import Cell, Head, Table
from manytune.evaluation.results import Evaluation
from manytune.evaluation.wording import p_value

MOST_SHOWN = 30
"""With more labels than this a matrix can't be read; `results.json` has the answers."""


def confusion_tables(evaluation: Evaluation) -> list[Table]:
    """Every system's confusion matrix, the right labels as rows; none where there are too many labels."""
    return [
        Table(
            f"{found.system}: answers by right label",
            "Right label",
            tuple(map(Head, found.answers)),
            tuple(
                (Head(label), tuple(Cell(count(number)) for number in row))
                for label, row in zip(found.labels, found.counts, strict=True)
            ),
        )
        for found in confusions(evaluation)
        if len(found.labels) <= MOST_SHOWN
    ]


def mcnemar_table(evaluation: Evaluation) -> Table | None:
    """McNemar's exact tests, one a row; None for none."""
    rows = tuple(
        (
            Head(f"{found.system} compared with {found.baseline}"),
            (
                Cell(count(found.only_system)),
                Cell(count(found.only_baseline)),
                Cell(p_value(found.p_value)),
            ),
        )
        for found in mcnemar_tests(evaluation)
    )
    columns = (
        Head("Only the first is right"),
        Head("Only the second"),
        Head("p", "exact, two-sided, uncorrected"),
    )
    return Table("McNemar's tests", "Systems", columns, rows) if rows else None
