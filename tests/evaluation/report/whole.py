"""An evaluation with everything that a report can show."""

from __future__ import annotations

import dataclasses

from tests.evaluation import invented

from manytune.evaluation.budgets import Budget, Spent
from manytune.evaluation.equivalence import Margin
from manytune.evaluation.inference_cost import InferenceCost
from manytune.evaluation.ranks import RankPoint, Spectrum, Sweep
from manytune.evaluation.results import Evaluation, Probe


def whole(papers: int = 12, resamples: int = 300) -> Evaluation:
    evaluation = invented.evaluation(
        papers, reference="full", margin=Margin("full", 0.02), all_pairs=True, resamples=resamples
    )
    text = invented.evaluation(6, metrics=("perplexity",), resamples=resamples)
    questions = invented.evaluation(6, metrics=("exact_match",), resamples=resamples)
    points = (
        RankPoint("full", 1, "all-linear", 300_000, 2.41, (2.40, 2.42), 61.0, 0.001, Spectrum(1.0, 1.0)),
        RankPoint("lora", 8, "all-linear", 2_400_000, 2.31, (2.29, 2.33), 66.0, None, Spectrum(5.1, 3.4)),
    )
    reason = "lora has the lowest validation loss (2.310), and every smaller one is worse by the test."
    return dataclasses.replace(
        evaluation,
        forgetting=(
            Probe("running text", "Perplexity of 16 passages.", text),
            Probe("general questions", "Share of 60 questions.", questions),
        ),
        sweep=Sweep(points, "lora", "lora", reason, 60, 20),
        answering=(
            InferenceCost("base", "base", 812.0, 0.038, 700_000_000),
            InferenceCost("full", "merged", 809.0, 0.038, 700_000_000),
            InferenceCost("lora", "unmerged", 701.0, 0.044, 712_000_000),
            InferenceCost("lora", "merged", 811.0, 0.038, 700_000_000),
        ),
        budget=Budget("running text", 0.01, (Spent("lora", 0.004, -0.002, 0.009, "within", 2.31),), "lora"),
    )
