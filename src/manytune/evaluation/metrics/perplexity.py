"""Perplexity of the references given their prompts: how surprised the model is by the right answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from manytune.errors import DataError
from manytune.evaluation.metrics.base import Described, Floats, number_of_references
from manytune.evaluation.results import Answer


@dataclass(frozen=True, slots=True)
class Perplexity(Described):
    """`exp(sum of negative log likelihoods / tokens)` over all completion tokens, end tokens included.

    Per token, not per item: a long reference weighs more than a short one. It depends on the tokenizer, so
    it compares systems over one base and not different bases. With several references all of them count.
    Lower is better; 1 is the least.
    """

    name: str = "perplexity"
    label: str = "Perplexity"
    bounds: tuple[float, float] = (1.0, float("inf"))
    higher_is_better: bool = False
    digits: int = 2

    def statistics(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Floats:
        """Rows `(negative log likelihood, tokens)`.

        Raises:
            DataError: An answer has no likelihood.
        """
        rows = []
        for index, answer in enumerate(answers):
            if answer.nll is None:
                raise DataError(
                    f"item {index} has no likelihood, so there is no perplexity; measure likelihoods too, "
                    "or leave perplexity out of the metrics"
                )
            rows.append((answer.nll, answer.nll_tokens))
        return np.array(rows, dtype=np.float64).reshape(-1, 2)

    def aggregate(self, sums: Floats) -> Floats:
        """Perplexity of the summed likelihoods; infinite past what a float holds."""
        with np.errstate(over="ignore"):
            result: Floats = np.exp(sums[..., 0] / sums[..., 1])
        return result

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """For example `nrefs:1|tokens:completion+end|mean:tokens|mrefs:all`."""
        return f"nrefs:{number_of_references(references)}|tokens:completion+end|mean:tokens|mrefs:all"
