"""The metrics by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from manytune.errors import DataError
from manytune.evaluation.metrics.accuracy import Contains, ExactMatch
from manytune.evaluation.metrics.base import Metric
from manytune.evaluation.metrics.bleu import Bleu, Chrf
from manytune.evaluation.metrics.calibration import CalibrationError
from manytune.evaluation.metrics.classification import Accuracy, MacroF1
from manytune.evaluation.metrics.perplexity import Perplexity
from manytune.evaluation.metrics.recorded import Recorded
from manytune.evaluation.metrics.regression import (
    MeanAbsoluteError,
    Pearson,
    RootMeanSquaredError,
    Spearman,
)
from manytune.evaluation.metrics.rouge import Rouge
from manytune.evaluation.metrics.spans import SpanScore, TagAccuracy
from manytune.evaluation.metrics.structured import JsonFields, JsonValid, SchemaValid
from manytune.evaluation.metrics.tool_calls import ToolCalls, ToolNames

__all__ = [
    "CLASS_METRICS",
    "METRICS",
    "NUMBER_METRICS",
    "TEXT_METRICS",
    "WORD_METRICS",
    "Metric",
    "metrics_named",
]

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Rouge("rouge1", "ROUGE-1"),
        Rouge("rouge2", "ROUGE-2"),
        Rouge("rougeL", "ROUGE-L"),
        Rouge("rougeLsum", "ROUGE-Lsum"),
        Bleu(),
        Chrf(),
        ExactMatch(),
        Contains(),
        Accuracy(),
        MacroF1(),
        CalibrationError(),
        RootMeanSquaredError(),
        MeanAbsoluteError(),
        Pearson(),
        Spearman(),
        SpanScore("span_f1", "Span F1"),
        SpanScore("span_f1_macro", "Span F1 (macro)", of="macro"),
        SpanScore("span_precision", "Span precision", of="precision"),
        SpanScore("span_recall", "Span recall", of="recall"),
        TagAccuracy(),
        ToolCalls(),
        ToolNames(),
        JsonValid(),
        SchemaValid(),
        JsonFields(),
        Perplexity(),
        Recorded(),
    )
}
"""Every metric, in the order in which tables show them."""

TEXT_METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf", "exact_match", "perplexity")
"""Those that mean something for any text; the others are for classes, short facts, tool calls and JSON."""

CLASS_METRICS = ("accuracy", "f1", "ece")
"""Those of classifiers."""

NUMBER_METRICS = ("rmse", "mae", "pearson", "spearman")
"""Those of regressions."""

WORD_METRICS = ("span_f1", "span_f1_macro", "span_precision", "span_recall", "tag_accuracy")
"""Those of classifiers of words."""


def metrics_named(names: Sequence[str]) -> tuple[Metric, ...]:
    """The metrics of these names, in their order and without repetition.

    Raises:
        DataError: A name is unknown, or there is none.
    """
    if not names:
        raise DataError(f"no metric given; choose from {', '.join(METRICS)}")
    for name in names:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise DataError(f"unknown metric '{name}'.{hint} There are {', '.join(METRICS)}.")
    return tuple(METRICS[name] for name in dict.fromkeys(names))
