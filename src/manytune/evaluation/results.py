"""What an evaluation found: frozen records with a versioned JSON form.

    Evaluation
    ├── items        what was asked, and the references
    ├── results      one RunResult a system: answers, scores, cost, loss curves
    ├── comparisons  pairs of systems, one metric at a time
    ├── equivalences which systems are as good as a reference
    ├── shares       how much of full fine-tuning's gain each method has
    ├── forgetting   the same systems on what the training wasn't about
    ├── sweep        ranks, and the smallest that is enough
    └── inference    how the intervals and the tests were made

An `Evaluation` holds everything the report shows and every later comparison needs, the answers included, so
that nothing has to be generated twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter

from manytune.evaluation.budgets import Budget
from manytune.evaluation.equivalence import Equivalence
from manytune.evaluation.inference_cost import InferenceCost
from manytune.evaluation.ranks import Sweep
from manytune.evaluation.resampling import Resampling
from manytune.evaluation.versioned import read_versioned, write_versioned

FORMAT = 2
"""Version of the JSON form. A reader refuses every other one."""

Verdict = Literal["better", "worse", "cannot tell"]

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that every system was asked.

    Attributes:
        prompt: The prompt as text, its segments joined.
        references: The answers that count as right; at least one.
        source: File or dataset that it came from.
        row: Its 1-based number there; of the first row, if several rows shared the prompt.
        group: Items with the same group aren't independent and are resampled together; `None` is a unit of its own.
        task: Which of several tasks it belongs to.
    """

    __pydantic_config__ = _STRICT

    prompt: str
    references: tuple[str, ...]
    source: str
    row: int
    group: str | None = None
    task: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What one system said to one item.

    Attributes:
        text: The generated text.
        tokens: Its length in tokens.
        finished: `"stop"` if the model ended it, `"length"` if it was cut.
        nll: Negative log likelihood of the item's references under the system, summed over their tokens, in
            nats; `None` if it wasn't measured.
        nll_tokens: How many tokens that sum runs over.
        confidence: The probability that a classifier gives its answer, which is a label; `None` for generated text.
        score: What whoever made the answer scored it, from 0 to 1; `None` if it came without.
    """

    __pydantic_config__ = _STRICT

    text: str
    tokens: int
    finished: Literal["stop", "length"]
    nll: float | None = None
    nll_tokens: int = 0
    confidence: float | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class ScoreWithInterval:
    """One metric's value and its confidence interval.

    Attributes:
        metric: The metric's name, such as `rouge1`.
        value: The score over all items; with several training seeds, the mean of their scores.
        low: Lower end of the interval; `None` where no interval can be given.
        high: Upper end.
        signature: How the value was computed, in the manner of sacrebleu.
        seeds: The score of each training seed; empty if there is only one.
    """

    __pydantic_config__ = _STRICT

    metric: str
    value: float
    low: float | None
    high: float | None
    signature: str
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """One system against another on the same items, by one metric.

    Attributes:
        system: Name of the system.
        baseline: Name of the system it is compared with.
        metric: The metric's name.
        difference: Score of the system minus score of the baseline.
        low: Lower end of the difference's confidence interval; `None` where none can be given.
        high: Upper end.
        p_value: Two-sided, from the paired randomization test.
        p_adjusted: The same by Holm's correction for all comparisons that were made by this metric.
        verdict: What the corrected test says in words, with the metric's direction taken into account.
        detectable: The smallest true difference that the corrected test finds with a chance of 80%; `None` if nothing
            is known about it.
    """

    __pydantic_config__ = _STRICT

    system: str
    baseline: str
    metric: str
    difference: float
    low: float | None
    high: float | None
    p_value: float
    p_adjusted: float
    verdict: Verdict
    detectable: float | None = None


@dataclass(frozen=True, slots=True)
class GainShare:
    """How much of a reference system's gain over the baseline another one has.

    Attributes:
        system: Whose gain.
        reference: The system whose gain is 1; as a rule full fine-tuning.
        metric: The metric's name.
        share: `(system - baseline) / (reference - baseline)`; `None` if the reference isn't better than the
            baseline, so that there is no gain to have a share of.
        low: Lower end of its confidence interval.
        high: Upper end.
    """

    __pydantic_config__ = _STRICT

    system: str
    reference: str
    metric: str
    share: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Cost:
    """What a system cost; `None` is "not measured" or "does not apply".

    Attributes:
        trainable_params: Parameters that were trained.
        total_params: All parameters, the trained ones included.
        seconds: Training time, evaluation excluded.
        peak_memory_bytes: Largest resident memory of the training process.
        adapter_bytes: Size on disk of what must be kept in addition to the base.
        tokens_per_second: Training throughput in input tokens.
        prompt_tokens: Tokens that it reads for a request, the mean over the items.
    """

    __pydantic_config__ = _STRICT

    trainable_params: int | None = None
    total_params: int | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    adapter_bytes: int | None = None
    tokens_per_second: float | None = None
    prompt_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class LossPoint:
    """Mean loss per target token, in nats, at an optimizer step."""

    __pydantic_config__ = _STRICT

    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class ScorePoint:
    """A score on validation prompts at an optimizer step."""

    __pydantic_config__ = _STRICT

    step: int
    value: float


@dataclass(frozen=True, slots=True)
class Curves:
    """How the loss went down, and the scores on validation prompts by metric, if they were measured."""

    __pydantic_config__ = _STRICT

    training: tuple[LossPoint, ...] = ()
    validation: tuple[LossPoint, ...] = ()
    scores: Mapping[str, tuple[ScorePoint, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunResult:
    """One system's answers and scores.

    Attributes:
        name: What tables call it; unique within an evaluation.
        method: `"base"`, or the name of the method that trained it.
        answers: One an item, in the items' order; with several training seeds, those of the first.
        scores: One a metric.
        cost: What it took.
        curves: Training and validation loss.
        provenance: Facts needed to make it again, each under a short title.
        task_scores: The scores over each task's items alone, by task; empty if there is only one task.
        seeds: The training seeds; empty if they weren't recorded.
    """

    __pydantic_config__ = _STRICT

    name: str
    method: str
    answers: tuple[Answer, ...]
    scores: tuple[ScoreWithInterval, ...]
    cost: Cost = field(default_factory=Cost)
    curves: Curves = field(default_factory=Curves)
    provenance: Mapping[str, str] = field(default_factory=dict)
    task_scores: Mapping[str, tuple[ScoreWithInterval, ...]] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()

    def score(self, metric: str) -> ScoreWithInterval:
        """The score by this metric.

        Raises:
            KeyError: It wasn't computed.
        """
        return {score.metric: score for score in self.scores}[metric]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference(Resampling):
    """How intervals and tests were made, and of how much.

    Attributes:
        clusters: How many independent units (groups, or items without one) were resampled.
    """

    __pydantic_config__ = _STRICT

    clusters: int


@dataclass(frozen=True, slots=True)
class Probe:
    """The same systems on something that the training wasn't about.

    Attributes:
        name: What tables call it, such as `general questions`.
        description: What it is made of, in a sentence.
        evaluation: Its items, scores, and comparisons with the untouched base.
    """

    __pydantic_config__ = _STRICT

    name: str
    description: str
    evaluation: Evaluation


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Several systems on the same items.

    Attributes:
        items: What was asked.
        results: The systems, the baseline first.
        comparisons: Every other system against the baseline, by every metric; perhaps other pairs, too.
        inference: How intervals and tests were made.
        primary: The metric that decides the verdict, chosen before the answers were seen.
        provenance: Facts needed to make all this again.
        shares: How much of the reference's gain the others have, by every metric.
        forgetting: What the systems lost elsewhere.
        sweep: The ranks that were tried.
        equivalences: Which systems are as good as a reference, by every metric.
        budget: What may be forgotten, and which system keeps to it.
        answering: What answering costs, as the engine measured it; empty if it wasn't measured.
        format: Version of this record.
    """

    __pydantic_config__ = _STRICT

    items: tuple[Item, ...]
    results: tuple[RunResult, ...]
    comparisons: tuple[Comparison, ...]
    inference: Inference
    primary: str
    provenance: Mapping[str, str] = field(default_factory=dict)
    shares: tuple[GainShare, ...] = ()
    forgetting: tuple[Probe, ...] = ()
    sweep: Sweep | None = None
    equivalences: tuple[Equivalence, ...] = ()
    answering: tuple[InferenceCost, ...] = ()
    budget: Budget | None = None
    format: int = FORMAT

    def result(self, name: str) -> RunResult:
        """The system of this name.

        Raises:
            KeyError: There is none.
        """
        return {result.name: result for result in self.results}[name]

    def comparison(self, system: str, metric: str, baseline: str | None = None) -> Comparison:
        """One system's comparison with another, by default the first one, by one metric.

        Raises:
            KeyError: It wasn't made.
        """
        found = {(one.system, one.metric, one.baseline): one for one in self.comparisons}
        return found[system, metric, baseline or self.results[0].name]

    def share(self, system: str, metric: str) -> GainShare | None:
        """One system's share of the reference's gain by one metric; `None` if it wasn't computed."""
        found = (one for one in self.shares if (one.system, one.metric) == (system, metric))
        return next(found, None)


_EVALUATION = TypeAdapter(Evaluation)


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write the JSON form, whole or not at all."""
    write_versioned(evaluation, path, _EVALUATION)


def read_evaluation(path: Path) -> Evaluation:
    """Read the JSON form.

    Raises:
        DataError: The file can't be read, isn't an evaluation, or is one of another format version.
    """
    remedy = "run `manytune evaluate` again"
    return read_versioned(path, _EVALUATION, version=FORMAT, what="an evaluation", remedy=remedy)
