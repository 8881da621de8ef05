"""The report as Markdown: verdicts, scores, shares of the gain, ranks, forgetting, cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from manytune.evaluation.metrics import METRICS
from manytune.evaluation.results import Evaluation
from manytune.evaluation.wording import (
    DASH,
    MARKS,
    basis_sentence,
    between_systems,
    claim,
    correction_sentence,
    count,
    evidence,
    forgotten_sentence,
    interval,
    p_value,
    score,
    seconds,
    seeds_sentence,
    share,
    share_sentence,
    share_text,
    signed,
    size,
)


def render_markdown(evaluation: Evaluation, *, title: str) -> str:
    """The whole report as text that reads well unrendered, too."""
    provenance = evaluation.provenance
    files = [key for key, value in provenance.items() if "\n" in value]  # a recipe is shown as it stands
    sentences = (share_sentence(evaluation), forgotten_sentence(evaluation), basis_sentence(evaluation))
    parts = [
        f"# {title}",
        "",
        *(
            f"- **{_text(claim(found))}**: {_text(evidence(evaluation, found))}"
            for found in (
                evaluation.comparison(result.name, evaluation.primary) for result in evaluation.results[1:]
            )
        ),
        "",
        *(sentence for sentence in sentences if sentence),
        "",
        *_scores(evaluation),
        *_shares(evaluation),
        *_ranks(evaluation),
        *_forgetting(evaluation),
        *_tasks(evaluation),
        *_costs(evaluation),
        "## How this was made",
        "",
        *(f"- {_text(key)}: {_text(value)}" for key, value in provenance.items() if key not in files),
        *(f"- {METRICS[one.metric].label}: `{one.signature}`" for one in evaluation.results[0].scores),
        "",
        *(line for key in files for line in (f"{_text(key)}:", "", *_code(provenance[key]), "")),
    ]
    return "\n".join(parts)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; numbers stand at the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return [f"| {' | '.join(map(_text, line))} |" for line in lines] + [""]


def _scores(evaluation: Evaluation) -> list[str]:
    heads = ["", *(result.name for result in evaluation.results)]
    rows = []
    for found in evaluation.results[0].scores:
        metric = METRICS[found.metric]
        row = [metric.label]
        for result in evaluation.results:
            ours = result.score(metric.name)
            mark = ""
            if result is not evaluation.results[0]:
                mark = f" {MARKS[evaluation.comparison(result.name, metric.name).verdict]}"
            row.append(f"{score(ours.value, metric)} ({interval(ours, metric)}){mark}")
        rows.append(row)
    signs = ", ".join(f"{mark} {word}" for word, mark in MARKS.items())
    level = f"{evaluation.inference.level:.0%}"
    note = f"In brackets {level} intervals over prompts. Against {evaluation.results[0].name}: {signs}."
    pairs = [f"- {sentence}" for sentence in between_systems(evaluation)]
    sentences = [note, correction_sentence(evaluation), seeds_sentence(evaluation)]
    text = " ".join(found for found in sentences if found)
    return ["## Scores", "", *table(heads, rows), text, "", *pairs, *([""] if pairs else [])]


def _shares(evaluation: Evaluation) -> list[str]:
    if not evaluation.shares:
        return []
    reference = evaluation.shares[0].reference
    names = [result.name for result in evaluation.results[1:] if result.name != reference]
    rows = []
    for found in evaluation.results[0].scores:
        shares = [evaluation.share(name, found.metric) for name in names]
        rows.append([METRICS[found.metric].label, *(share_text(one) if one else DASH for one in shares)])
    return [f"## Share of {reference}'s gain", "", *table(["", *names], rows)] if names else []


def _ranks(evaluation: Evaluation) -> list[str]:
    sweep = evaluation.sweep
    if sweep is None:
        return []
    metric = METRICS[evaluation.primary]
    heads = [
        "system",
        "trained parameters",
        "validation loss",
        "p against the best",
        metric.label,
        "effective rank",
        "training",
    ]
    rows = [
        [
            point.system,
            count(point.trainable_params),
            f"{point.validation_loss:.3f}",
            "best" if point.p_value is None else p_value(point.p_value),
            score(evaluation.result(point.system).score(metric.name).value, metric),
            DASH if point.spectrum is None else f"{point.spectrum.effective_rank:.1f}",
            seconds(point.seconds),
        ]
        for point in sweep.points
    ]
    return ["## Ranks", "", f"**{sweep.recommended}** is enough. {sweep.reason}", "", *table(heads, rows)]


def _forgetting(evaluation: Evaluation) -> list[str]:
    if not evaluation.forgetting:
        return []
    names = [result.name for result in evaluation.results]
    rows = []
    for probe in evaluation.forgetting:
        inner = probe.evaluation
        metric = METRICS[inner.primary]
        row = [f"{probe.name} ({metric.label})"]
        known = {result.name: result for result in inner.results}
        for name in names:
            if name not in known:
                row.append(DASH)
                continue
            text = score(known[name].score(metric.name).value, metric)
            if name != names[0]:
                found = inner.comparison(name, metric.name)
                text += f" ({signed(found.difference, metric)} {MARKS[found.verdict]})"
            row.append(text)
        rows.append(row)
    notes = [f"- {probe.name}: {_text(probe.description)}" for probe in evaluation.forgetting]
    return ["## What was forgotten", "", *table(["", *names], rows), *notes, ""]


def _tasks(evaluation: Evaluation) -> list[str]:
    tasks = evaluation.results[0].task_scores
    if not tasks:
        return []
    metric = METRICS[evaluation.primary]
    rows = []
    for task in tasks:
        row = [task]
        for result in evaluation.results:
            found = next(one for one in result.task_scores[task] if one.metric == metric.name)
            row.append(f"{score(found.value, metric)} ({interval(found, metric)})")
        rows.append(row)
    heads = ["", *(result.name for result in evaluation.results)]
    return [f"## {metric.label} by task", "", *table(heads, rows)]


def _costs(evaluation: Evaluation) -> list[str]:
    rows = []
    for result in evaluation.results[1:]:
        cost = result.cost
        trained = f"{count(cost.trainable_params)} ({share(cost.trainable_params, cost.total_params)})"
        speed = None if cost.tokens_per_second is None else round(cost.tokens_per_second)
        rows.append(
            [
                result.name,
                trained if cost.trainable_params is not None else DASH,
                seconds(cost.seconds),
                size(cost.peak_memory_bytes),
                size(cost.adapter_bytes),
                count(speed),
            ]
        )
    heads = ["", "trained parameters", "training", "peak memory", "on disk", "tokens/s"]
    return ["## Cost", "", *table(heads, rows)] if rows else []


def _code(text: str) -> list[str]:
    """A block of text as it stands."""
    return [f"    {line}" for line in text.rstrip().splitlines()]


def _text(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
