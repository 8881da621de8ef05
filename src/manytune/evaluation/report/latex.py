"""The score table for a paper: booktabs, one row a system."""

from __future__ import annotations

from manytune.evaluation.metrics import METRICS
from manytune.evaluation.results import Evaluation, RunResult, ScoreWithInterval

_MARKS = {"better": r"$^{\uparrow}$", "worse": r"$^{\downarrow}$", "cannot tell": ""}
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{letter: rf"\{letter}" for letter in "&%$#_{}"},
}


def render_latex(evaluation: Evaluation) -> str:
    r"""A `tabular` with every score, half the width of its interval, and the trained parameters.

    It needs `\usepackage{booktabs}`. An arrow marks a system that the paired test found better or worse than
    the first one.
    """
    scores = evaluation.results[0].scores
    heads = ["System", "Parameters", *(METRICS[found.metric].label for found in scores)]
    rows = [
        " & ".join(
            [
                escape(result.name),
                "--" if result.cost.trainable_params is None else f"{result.cost.trainable_params:,}",
                *(_cell(evaluation, result, found) for found in result.scores),
            ]
        )
        for result in evaluation.results
    ]
    level = f"{evaluation.inference.level:.0%}".replace("%", r"\%")
    return "\n".join(
        [
            f"% {len(evaluation.items):,} prompts in {evaluation.inference.clusters:,} independent groups;"
            f" {level} bootstrap intervals as halves of their widths;",
            f"% arrows: paired randomization test against {evaluation.results[0].name}, Holm-corrected.",
            rf"\begin{{tabular}}{{lr{'r' * len(scores)}}}",
            r"\toprule",
            " & ".join(map(escape, heads)) + r" \\",
            r"\midrule",
            *(rf"{row} \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def escape(text: str) -> str:
    """A text as LaTeX prints it."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def _cell(evaluation: Evaluation, result: RunResult, found: ScoreWithInterval) -> str:
    metric = METRICS[found.metric]
    text = f"{found.value:.{metric.digits}f}"
    if found.low is not None and found.high is not None:
        text += rf" {{\scriptsize$\pm${(found.high - found.low) / 2:.{metric.digits}f}}}"
    if result is evaluation.results[0]:
        return text
    return text + _MARKS[evaluation.comparison(result.name, metric.name).verdict]
