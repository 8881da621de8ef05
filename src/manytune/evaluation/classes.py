"""What accuracy alone doesn't say of a classification: which labels are confused, and McNemar's test between systems.

Both follow from the answers of an evaluation whose deciding metric is accuracy, whether a head chose the labels or
generated text was read as one. With several training seeds they are about the first.
"""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import binomtest

from manytune.evaluation.metrics.accuracy import normalise
from manytune.evaluation.metrics.classification import labels_of, read_labels
from manytune.evaluation.results import Evaluation, RunResult

DECIDING = "accuracy"
NO_LABEL = "(none)"
"""What an answer that is read as no label counts as."""


@dataclass(frozen=True, slots=True)
class McNemar:
    """McNemar's exact test of one system against another on the same items.

    Attributes:
        system: Name of the system.
        baseline: Name of the system it is compared with.
        only_system: Items that the system alone has right.
        only_baseline: Items that the other alone has right.
        p_value: Two-sided, from the binomial distribution with probability 1/2; not corrected for several tests, and
            only valid for items that don't depend on one another.
    """

    system: str
    baseline: str
    only_system: int
    only_baseline: int
    p_value: float


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often a system answers each label where each is right.

    Attributes:
        system: Name of the system.
        labels: The right labels, one a row.
        answers: The answers, one a column: the labels, and `NO_LABEL` if an answer is none.
        counts: Items, by right label and answer.
    """

    system: str
    labels: tuple[str, ...]
    answers: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


def mcnemar_p(only_one: int, only_other: int) -> float:
    """The two-sided exact p-value of McNemar's test.

    Args:
        only_one: Items that one system alone has right.
        only_other: Items that the other alone has right.
    """
    differing = only_one + only_other
    return float(binomtest(only_one, differing).pvalue) if differing else 1.0


def mcnemar_tests(evaluation: Evaluation) -> tuple[McNemar, ...]:
    """A test for every comparison by accuracy; none unless accuracy decides."""
    if evaluation.primary != DECIDING:
        return ()
    right = {result.name: _right(evaluation, result) for result in evaluation.results}
    found = []
    for pair in evaluation.comparisons:
        if pair.metric == DECIDING and {pair.system, pair.baseline} <= right.keys():
            both = list(zip(right[pair.system], right[pair.baseline], strict=True))
            ours = sum(mine and not theirs for mine, theirs in both)
            theirs = sum(theirs and not mine for mine, theirs in both)
            found.append(McNemar(pair.system, pair.baseline, ours, theirs, mcnemar_p(ours, theirs)))
    return tuple(found)


def confusions(evaluation: Evaluation) -> tuple[Confusion, ...]:
    """Every system's confusion matrix; none unless accuracy decides. An item's first reference counts as its label."""
    if evaluation.primary != DECIDING:
        return ()
    references = [item.references for item in evaluation.items]
    written = {normalise(texts[0]): texts[0] for texts in references}
    labels = labels_of(references)
    found = []
    for result in evaluation.results:
        read = read_labels(result.answers, references)
        answers = (*labels, *([None] if None in read else []))
        counts = {(one, other): 0 for one in labels for other in answers}
        for texts, said in zip(references, read, strict=True):
            counts[normalise(texts[0]), said] += 1
        rows = tuple(tuple(counts[one, other] for other in answers) for one in labels)
        names = tuple(written.get(label, label) for label in labels)
        found.append(Confusion(result.name, names, (*names, *([NO_LABEL] if None in read else [])), rows))
    return tuple(found)


def _right(evaluation: Evaluation, result: RunResult) -> list[bool]:
    references = [item.references for item in evaluation.items]
    read = read_labels(result.answers, references)
    return [
        said is not None and said in map(normalise, texts)
        for said, texts in zip(read, references, strict=True)
    ]
