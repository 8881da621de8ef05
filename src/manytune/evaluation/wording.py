"""Scores, costs and verdicts in words and figures, the same for the terminal and the report."""

from __future__ import annotations

from dataclasses import dataclass

from manytune.evaluation.certainty import equivalence_sentence, power_sentence, power_text
from manytune.evaluation.degenerate import degenerate_note, degenerate_sentences
from manytune.evaluation.forgetting_budget import budget_sentence
from manytune.evaluation.metrics import METRICS, Metric
from manytune.evaluation.quantities import DASH, milliseconds, share, size
from manytune.evaluation.results import (
    Comparison,
    Evaluation,
    GainShare,
    Probe,
    RunResult,
    ScoreWithInterval,
)

MINUS = "\N{MINUS SIGN}"
MARKS = {"better": "▲", "worse": "▼", "cannot tell": "○"}
"""A sign next to each verdict, so that it doesn't depend on colour."""

_MOST_ALONE = 4  # more systems than this share a sentence
_TOGETHER = {
    "better": ("is better than {}", "are better than {}"),
    "cannot tell": ("shows no clear difference from {}", "show no clear difference from {}"),
    "worse": ("is worse than {}", "are worse than {}"),
}

_FEWEST_CLUSTERS = 6  # a paired randomization test of n has no p-value below 2^(1 - n)


def score(value: float, metric: Metric) -> str:
    """A score with the metric's decimals."""
    return f"{value:.{metric.digits}f}".replace("-", MINUS)


def signed(value: float, metric: Metric) -> str:
    """A difference with its sign."""
    text = f"{value:+.{metric.digits}f}"
    return text.replace("-", MINUS)


def interval(found: ScoreWithInterval, metric: Metric) -> str:
    """Both ends of a score's interval, or why there are none."""
    if found.low is None or found.high is None:
        return "no interval"
    return f"{score(found.low, metric)}{DASH}{score(found.high, metric)}"


def difference_interval(found: Comparison, metric: Metric) -> str:
    """Both ends of a difference's interval, signed."""
    if found.low is None or found.high is None:
        return "no interval"
    return f"{signed(found.low, metric)} to {signed(found.high, metric)}"


def p_value(value: float) -> str:
    """`p = 0.034`, or `p < 0.001`."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def claim(found: Comparison) -> str:
    """The verdict as a clause, such as `lora is better than base`."""
    return {
        "better": f"{found.system} is better than {found.baseline}",
        "worse": f"{found.system} is worse than {found.baseline}",
        "cannot tell": f"{found.system} shows no clear difference from {found.baseline}",
    }[found.verdict]


def verdict_of(evaluation: Evaluation, found: Comparison) -> str:
    """The claim, and which of the two systems degenerates, so that a gain over answers that are none isn't missed."""
    notes = [degenerate_note(evaluation, evaluation.result(name)) for name in (found.system, found.baseline)]
    told = "; ".join(filter(None, notes))
    return f"{claim(found)}, but {told}" if told else claim(found)


def evidence(evaluation: Evaluation, found: Comparison) -> str:
    """The evidence for a claim.

    For example `ROUGE-1 0.412 against 0.301, a difference of +0.111 (95% interval +0.090 to +0.133; p <
    0.001). Their intervals don't overlap.`
    """
    metric = METRICS[found.metric]
    ours = evaluation.result(found.system).score(metric.name)
    theirs = evaluation.result(found.baseline).score(metric.name)
    level = f"{evaluation.inference.level:.0%}"
    sentence = (
        f"{metric.label} {score(ours.value, metric)} against {score(theirs.value, metric)}, "
        f"a difference of {signed(found.difference, metric)} ({level} interval {difference_interval(found, metric)}; "
        f"{p_value(found.p_adjusted)})."
    )
    if found.verdict == "cannot tell":
        return f"{sentence} {power_sentence(evaluation, found) or 'More test prompts would narrow the interval.'}"
    return f"{sentence} Their intervals {'overlap' if _overlap(ours, theirs) else 'do not overlap'}."


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict on one system or on several, and the evidence for it."""

    verdict: str
    claim: str
    evidence: str


def findings(evaluation: Evaluation) -> list[Finding]:
    """What the deciding metric's tests against the baseline found: of few systems one by one, of many by verdict."""
    metric, baseline = METRICS[evaluation.primary], evaluation.results[0]
    found = [evaluation.comparison(result.name, metric.name) for result in evaluation.results[1:]]
    if len(found) <= _MOST_ALONE:
        return [Finding(one.verdict, verdict_of(evaluation, one), evidence(evaluation, one)) for one in found]
    before, note = score(baseline.score(metric.name).value, metric), degenerate_note(evaluation, baseline)
    together = []
    for verdict, words in _TOGETHER.items():
        alike = [one for one in found if one.verdict == verdict]
        if alike:
            systems = "1 system" if len(alike) == 1 else f"{len(alike)} systems"
            differences = ", ".join(f"{one.system} {signed(one.difference, metric)}" for one in alike)
            highest = p_value(max(one.p_adjusted for one in alike))
            tested = "each " * (len(alike) > 1) + highest + " or less" * ("<" not in highest)
            if verdict != "cannot tell":
                differences += f" ({tested})"
            elif hidden := [power_text(one) for one in alike if one.detectable is not None]:
                largest = max(alike, key=lambda one: one.detectable or 0.0)
                differences += f" ({'at most ' * (len(hidden) > 1)}{power_text(largest)})"
            together.append(
                Finding(
                    verdict,
                    f"{systems} {words[len(alike) > 1].format(baseline.name)}"
                    + (f", but {note}" if note else ""),
                    f"by {metric.label}, from {before}, {differences}.",
                )
            )
    return together


def basis_sentence(evaluation: Evaluation) -> str:
    """How much was asked."""
    items, clusters = len(evaluation.items), evaluation.inference.clusters
    asked = f"{items:,} prompt{'' if items == 1 else 's'}"
    if clusters != items:
        asked += f" in {clusters:,} independent group{'' if clusters == 1 else 's'}"
    return f"{asked}, the same for every system."


def between_systems(evaluation: Evaluation) -> list[str]:
    """What the tests of the deciding metric say of pairs without the baseline, a sentence each."""
    metric, baseline = METRICS[evaluation.primary], evaluation.results[0].name
    return [
        f"{claim(found)}: {signed(found.difference, metric)} {metric.label} ({_tested(found)})."
        for found in evaluation.comparisons
        if found.metric == metric.name and found.baseline != baseline
    ]


def share_text(found: GainShare) -> str:
    """A share of the gain with its interval, such as `97% (88–106%)`; a dash where there is no gain."""
    if found.share is None:
        return DASH
    text = f"{100 * found.share:.0f}%".replace("-", MINUS)
    if found.low is None or found.high is None:
        return text
    ends = f"{100 * found.low:.0f}{DASH}{100 * found.high:.0f}%".replace("-", MINUS)
    return f"{text} ({ends})"


def share_sentence(evaluation: Evaluation) -> str | None:
    """How much of the reference's gain the best of the other systems has; `None` if shares weren't computed.

    Others that the reference's method trained, such as itself held to a schema, are passed over if there are more.
    """
    known = [found for found in evaluation.shares if found.metric == evaluation.primary]
    others = [found for found in known if found.system != found.reference]
    if not others:
        return None
    label = METRICS[evaluation.primary].label
    reference = others[0].reference
    if others[0].share is None:
        return (
            f"{reference} shows no clear gain over {evaluation.results[0].name} by {label}, so there is no gain to "
            "compare with."
        )
    same = evaluation.result(reference).method
    of_another = [found for found in others if evaluation.result(found.system).method != same]
    best = max(of_another or others, key=lambda found: found.share or 0.0)
    trained = evaluation.result(best.system).cost
    spent = share(trained.trainable_params, trained.total_params)
    with_parameters = f" with {spent} of the parameters" if spent else ""
    return f"{best.system} has {share_text(best)} of {reference}'s {label} gain{with_parameters}."


def prompting_sentence(evaluation: Evaluation) -> str | None:
    """Whether training was better than prompting, and what the prompt costs; `None` if only the base was asked.

    Prompting is examples in the prompt, or answers held to a schema. The trained system with the best score is compared
    with the prompt with the best score, both by the test rows.
    """
    metric, base = METRICS[evaluation.primary], evaluation.results[0]
    sign = 1 if metric.higher_is_better else -1

    def best(results: list[RunResult]) -> RunResult:
        return max(results, key=lambda result: sign * result.score(metric.name).value)

    prompted = [result for result in evaluation.results[1:] if result.method == base.method]
    trained = [result for result in evaluation.results[1:] if result.method != base.method]
    if not prompted or base.method != "base":  # systems from elsewhere may be anything
        return None
    prompt = best(prompted)
    reads = ""
    if prompt.cost.prompt_tokens and base.cost.prompt_tokens:
        read, times = prompt.cost.prompt_tokens, prompt.cost.prompt_tokens / base.cost.prompt_tokens
        waits = {
            one.system: milliseconds(one.first_token_seconds)
            for one in evaluation.answering
            if one.form == "base"
        }
        reads = f" {prompt.name} reads {read:,.0f} tokens per request, {times:.1f} times {base.name}'s"
        if {prompt.name, base.name} <= waits.keys():
            reads += f", and its first token comes after {waits[prompt.name]} instead of {waits[base.name]}"
        reads += "."
    if not trained:
        return f"Of what isn't trained, {prompt.name} has the best {metric.label}.{reads}"
    system = best(trained)
    try:
        found = evaluation.comparison(system.name, metric.name, prompt.name)
    except KeyError:
        return None
    return (
        f"Compared with the best of what isn't trained, {claim(found)}: "
        f"{signed(found.difference, metric)} {metric.label} "
        f"({_tested(found)}).{reads}"
    )


def main_sentences(evaluation: Evaluation) -> list[str]:
    """What is to be known next to the verdicts: degenerate answers, the share of the gain, equivalence, prompting."""
    found = [
        share_sentence(evaluation),
        equivalence_sentence(evaluation),
        prompting_sentence(evaluation),
        budget_sentence(evaluation.budget),
    ]
    return [*degenerate_sentences(evaluation), *(sentence for sentence in found if sentence)]


def mixed_sentence(evaluation: Evaluation) -> str | None:
    """What several adapters in one batch cost; None if that wasn't measured."""
    found = next((one for one in evaluation.answering if one.form == "mixed"), None)
    if found is None:
        return None
    plain = next((one for one in evaluation.answering if one.form == "base"), None)
    compared = ""
    if plain is not None:
        compared = f", {found.tokens_per_second / plain.tokens_per_second:.0%} of {plain.system}'s"
    return (
        f"Mixed in one batch ({found.system}): {found.tokens_per_second:,.0f} tokens per second{compared}; first token "
        f"after {milliseconds(found.first_token_seconds)}; {size(found.memory_bytes)}."
    )


def forgotten_sentence(evaluation: Evaluation) -> str | None:
    """Which systems became worse outside the training's task; `None` if nothing else was asked."""
    if not any(probe.evaluation.comparisons for probe in evaluation.forgetting):
        return None
    losses = []
    for probe in evaluation.forgetting:
        inner = probe.evaluation
        metric, base = METRICS[inner.primary], inner.results[0]
        worse = [
            f"{result.name} {score(result.score(metric.name).value, metric)}"
            for result in inner.results[1:]
            if inner.comparison(result.name, metric.name).verdict == "worse"
        ]
        if worse:
            before = score(base.score(metric.name).value, metric)
            losses.append(f"{probe.name} ({metric.label}, {base.name} {before}): {', '.join(worse)}")
    if losses:
        return f"Forgotten: {'; '.join(losses)}."
    able = [probe for probe in evaluation.forgetting if _could_show(probe)]
    if not able:
        return "Too few passages to tell whether anything was forgotten on other tasks."
    sentences = ["We found no evidence of forgetting on other tasks."]
    if hidden := [text for probe in able if (text := _hidden(probe))]:
        sentences.append(f"A change of {', or of '.join(hidden)} would be found 4 times of 5.")
    if unable := [probe.name for probe in evaluation.forgetting if probe not in able]:
        sentences.append(f"Too few passages to tell: {', '.join(unable)}.")
    return " ".join(sentences)


def _detectable(probe: Probe) -> float | None:
    """The change on a probe that its tests find with a chance of 80%, of the system that they are weakest for."""
    inner = probe.evaluation
    sizes = [one.detectable for one in inner.comparisons if one.metric == inner.primary and one.detectable]
    return max(sizes, default=None)


def _could_show(probe: Probe) -> bool:
    """Whether a probe would have found a system that lost all of the base's score."""
    inner, size = probe.evaluation, _detectable(probe)
    if inner.inference.clusters < _FEWEST_CLUSTERS:
        return False
    return size is None or size < abs(inner.results[0].score(inner.primary).value)


def _hidden(probe: Probe) -> str:
    """The change on a probe that could have stayed unseen, such as `0.081 in trivia`."""
    size = _detectable(probe)
    return "" if size is None else f"{score(size, METRICS[probe.evaluation.primary])} in {probe.name}"


def correction_sentence(evaluation: Evaluation) -> str | None:
    """For how many tests p-values are corrected; `None` if there is only one."""
    tests = sum(found.metric == evaluation.primary for found in evaluation.comparisons)
    if tests < 2:
        return None
    return f"P-values are corrected for the {tests} comparisons by each metric (Holm)."


def blunt_sentence(evaluation: Evaluation) -> str | None:
    """That no test can be significant with so few independent units; `None` if one can."""
    tests = sum(found.metric == evaluation.primary for found in evaluation.comparisons)
    units, resamples = evaluation.inference.clusters, evaluation.inference.resamples
    ways = 2.0**units
    least = tests * (2 / ways if ways <= resamples else 1 / (1 + resamples))
    if least <= 1 - evaluation.inference.level:  # Holm multiplies the smallest p-value by the number of tests
        return None
    return (
        f"With {units} independent unit{'s' * (units != 1)} and {tests} comparisons no p-value can be below "
        f"{min(least, 1.0):.2g}, so no difference can be significant: evaluate on more prompts."
    )


def asked_sentence(probe: Probe) -> str:
    """What a probe asks, and that its tests can't be significant, if they can't."""
    return " ".join(filter(None, (probe.description, blunt_sentence(probe.evaluation))))


def seeds_sentence(evaluation: Evaluation) -> str | None:
    """The spread over training seeds, which the intervals don't cover; `None` for a single seed."""
    metric = METRICS[evaluation.primary]
    spreads = [
        f"{result.name} {score(min(found.seeds), metric)} to {score(max(found.seeds), metric)}"
        for result in evaluation.results
        if (found := result.score(metric.name)).seeds
    ]
    if not spreads:
        return None
    seeds = max(len(result.seeds) for result in evaluation.results)
    return (
        f"Scores are means over {seeds} training seeds; intervals cover the choice of prompts. {metric.label} by seed: "
        f"{', '.join(spreads)}."
    )


def cut_sentence(evaluation: Evaluation) -> str | None:
    """Whose answers hit the length limit and how many; `None` if none did."""
    asked = f"{len(evaluation.items):,}"
    cut = [
        f"{number:,} of {asked} {result.name} answers"
        for result in evaluation.results
        if (number := sum(answer.finished == "length" for answer in result.answers))
    ]
    return f"Cut off at the length limit: {', '.join(cut)}." if cut else None


def _tested(found: Comparison) -> str:
    """What a test says in brackets: the interval, the p-value, and what it could have found if it found nothing."""
    metric = METRICS[found.metric]
    parts = [difference_interval(found, metric), p_value(found.p_adjusted), power_text(found)]
    return "; ".join(filter(None, parts))


def _overlap(one: ScoreWithInterval, other: ScoreWithInterval) -> bool:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return True
    return one.low <= other.high and other.low <= one.high
