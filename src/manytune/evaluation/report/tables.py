"""The report's tables: what each cell says, and whether systems are rows or columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from manytune.evaluation.certainty import power_note
from manytune.evaluation.metrics import METRICS
from manytune.evaluation.quantities import count, milliseconds, seconds, share, size
from manytune.evaluation.results import Evaluation
from manytune.evaluation.wording import difference_interval, interval, p_value, score, share_text, signed

MOST_ACROSS = 4
"""With more systems than this they are the rows, and what was measured are the columns."""


_QUALITY = 4  # quality comes after what training cost, and before what answering costs


@dataclass(frozen=True, slots=True)
class Head:
    """What a row or a column is about.

    Attributes:
        text: Its name.
        note: A remark below it.
        system: The system's number, if it is one.
        primary: Whether it is the one that matters most.
    """

    text: str
    note: str = ""
    system: int | None = None
    primary: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """A value, remarks below it, and what the test says of it."""

    text: str
    notes: tuple[str, ...] = ()
    verdict: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        label: What it shows, for those who can't see it.
        corner: What its rows are.
        columns: The heads of its columns.
        rows: Each row's head and cells.
    """

    label: str
    corner: str
    columns: tuple[Head, ...]
    rows: tuple[tuple[Head, tuple[Cell, ...]], ...]


def of_systems(
    label: str,
    corner: str,
    systems: Sequence[Head],
    measures: Sequence[tuple[Head, Sequence[Cell]]],
    *,
    most_across: int = MOST_ACROSS,
) -> Table:
    """A table of what was measured of each system: systems are the columns, or the rows if they are many.

    Args:
        label: What it shows.
        corner: What the measures are, as in "Metric".
        systems: The systems.
        measures: Each measure with a cell a system.
        most_across: The most systems that are columns.
    """
    if len(systems) <= most_across:
        return Table(label, corner, tuple(systems), tuple((head, tuple(cells)) for head, cells in measures))
    rows = tuple(
        (system, tuple(cells[place] for _, cells in measures)) for place, system in enumerate(systems)
    )
    return Table(label, "System", tuple(head for head, _ in measures), rows)


def system_heads(evaluation: Evaluation, *, baseline: bool = True) -> list[Head]:
    """The systems, with the baseline or without it."""
    heads = [Head(result.name, system=number) for number, result in enumerate(evaluation.results)]
    return heads if baseline else heads[1:]


def score_table(evaluation: Evaluation) -> Table:
    """Every system's scores, their intervals, and what the test against the baseline says."""
    measures = []
    for found in evaluation.results[0].scores:
        metric = METRICS[found.metric]
        cells = []
        for place, result in enumerate(evaluation.results):
            ours = result.score(metric.name)
            word = evaluation.comparison(result.name, metric.name).verdict if place else None
            cells.append(Cell(score(ours.value, metric), (interval(ours, metric),), word))
        note = "" if metric.higher_is_better else "lower is better"
        head = Head(metric.label, note, primary=metric.name == evaluation.primary)
        measures.append((head, cells))
    return of_systems("Scores of every system", "Metric", system_heads(evaluation), measures)


def difference_table(evaluation: Evaluation) -> Table:
    """Every system's differences from the baseline."""
    measures = []
    for one in evaluation.results[0].scores:
        metric = METRICS[one.metric]
        cells = []
        for result in evaluation.results[1:]:
            found = evaluation.comparison(result.name, metric.name)
            notes = (difference_interval(found, metric), p_value(found.p_adjusted), *power_note(found))
            cells.append(Cell(signed(found.difference, metric), notes, found.verdict))
        measures.append((Head(metric.label, primary=metric.name == evaluation.primary), cells))
    label = f"Differences from {evaluation.results[0].name}"
    return of_systems(label, "Metric", system_heads(evaluation, baseline=False), measures)


def share_table(evaluation: Evaluation) -> Table | None:
    """Every system's share of the reference's gain, by every metric; None if shares weren't computed."""
    if not evaluation.shares:
        return None
    reference = evaluation.shares[0].reference
    systems = [head for head in system_heads(evaluation, baseline=False) if head.text != reference]
    if not systems:
        return None
    measures = []
    for found in evaluation.results[0].scores:
        shares = [evaluation.share(system.text, found.metric) for system in systems]
        cells = [Cell(share_text(one) if one is not None else count(None)) for one in shares]
        measures.append(
            (Head(METRICS[found.metric].label, primary=found.metric == evaluation.primary), cells)
        )
    return of_systems("Shares of the gain", "Metric", systems, measures)


def task_table(evaluation: Evaluation) -> Table | None:
    """The deciding metric task by task; None for a single task."""
    metric = METRICS[evaluation.primary]
    measures = []
    for task in evaluation.results[0].task_scores:
        cells = []
        for result in evaluation.results:
            found = next(one for one in result.task_scores[task] if one.metric == metric.name)
            cells.append(Cell(score(found.value, metric), (interval(found, metric),)))
        measures.append((Head(task), cells))
    if not measures:
        return None
    return of_systems(f"{metric.label} by task", "Task", system_heads(evaluation), measures)


def forgetting_table(evaluation: Evaluation, *, most_across: int = MOST_ACROSS) -> Table | None:
    """What every system scores outside the training's task; None if nothing was asked."""
    measures = []
    for probe in evaluation.forgetting:
        inner = probe.evaluation
        metric = METRICS[inner.primary]
        known = {result.name: result for result in inner.results}
        cells = []
        for place, result in enumerate(evaluation.results):
            if result.name not in known:
                cells.append(Cell(count(None)))
                continue
            text = score(known[result.name].score(metric.name).value, metric)
            found = inner.comparison(result.name, metric.name) if place else None
            notes = () if found is None else (signed(found.difference, metric),)
            cells.append(Cell(text, notes, None if found is None else found.verdict))
        measures.append((Head(f"{probe.name} ({metric.label})"), cells))
    if not measures:
        return None
    systems = system_heads(evaluation)
    return of_systems("What was forgotten", "Asked", systems, measures, most_across=most_across)


def cost_table(evaluation: Evaluation, *, most_across: int = MOST_ACROSS) -> Table | None:
    """The five trade-offs of every system in one table: parameters, memory, training speed, quality, inference cost.

    None if nothing was measured of any system's training or answering.
    """
    results = evaluation.results
    costs = [result.cost for result in results]
    shares = [share(cost.trainable_params, cost.total_params) for cost in costs]
    trained = [
        Cell(count(cost.trainable_params), (spent,) if spent else ())
        for cost, spent in zip(costs, shares, strict=True)
    ]
    measures = [
        (Head("Trained parameters"), trained),
        (Head("Memory in training", "peak"), [Cell(size(cost.peak_memory_bytes)) for cost in costs]),
        (Head("Training time"), [Cell(seconds(cost.seconds)) for cost in costs]),
        (Head("Training tokens per second"), [Cell(count(_whole(cost.tokens_per_second))) for cost in costs]),
        *answering_measures(evaluation),
        (Head("On disk, in addition to the base"), [Cell(size(cost.adapter_bytes)) for cost in costs]),
    ]
    read = [cost.prompt_tokens for cost in costs]
    if len(set(read)) > 1:  # examples in the prompt are paid for with each request
        measures.append((Head("Tokens read per request"), [Cell(count(_whole(one))) for one in read]))
    nothing = count(None)
    measures = [(head, cells) for head, cells in measures if any(cell.text != nothing for cell in cells)]
    if not measures:
        return None
    metric = METRICS[evaluation.primary]
    quality = [result.score(metric.name) for result in results]
    cells = [Cell(score(one.value, metric), (interval(one, metric),)) for one in quality]
    measures.insert(_QUALITY, (Head(f"Quality, {metric.label}", primary=True), cells))
    return of_systems(
        "Cost of every system", "Trade-off", system_heads(evaluation), measures, most_across=most_across
    )


def answering_measures(evaluation: Evaluation) -> list[tuple[Head, list[Cell]]]:
    """What answering costs every system: unmerged, and below it merged; what isn't merged has no remark."""
    if not evaluation.answering:
        return []
    found = {(one.system, one.form): one for one in evaluation.answering}
    plain = found.get((evaluation.results[0].name, "base"))
    throughput: list[Cell] = []
    first: list[Cell] = []
    memory: list[Cell] = []
    for result in evaluation.results:
        name = result.name
        one = found.get((name, "base")) or found.get((name, "unmerged"))
        merged = found.get((name, "merged"))
        shown = one or merged
        if shown is None:
            for cells in (throughput, first, memory):
                cells.append(Cell(count(None)))
            continue
        both = merged if one is not None else None
        speed = (
            f"{shown.tokens_per_second / plain.tokens_per_second:.0%} of {evaluation.results[0].name}"
            if plain
            else ""
        )
        notes = (
            speed if plain is not shown else "",
            f"merged {both.tokens_per_second:,.0f}" if both else "",
        )
        throughput.append(Cell(f"{shown.tokens_per_second:,.0f}", tuple(filter(None, notes))))
        late = (f"merged {milliseconds(both.first_token_seconds)}",) if both else ()
        first.append(Cell(milliseconds(shown.first_token_seconds), late))
        memory.append(
            Cell(
                size(shown.memory_bytes),
                (f"merged {size(both.memory_bytes)}",) if both else (),
            )
        )
    return [
        (Head("Answering, tokens per second", "adapters unmerged"), throughput),
        (Head("Answering, first token"), first),
        (Head("Answering, memory", "peak"), memory),
    ]


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def rank_table(evaluation: Evaluation) -> Table | None:
    """One row a rank; None without a sweep."""
    sweep = evaluation.sweep
    if sweep is None:
        return None
    metric = METRICS[evaluation.primary]
    columns = (
        "Trained parameters",
        "Validation loss",
        metric.label,
        "Effective rank",
        "Training time",
    )
    rows = []
    for point in sweep.points:
        chosen = point.system == sweep.recommended
        tested = evaluation.result(point.system).score(metric.name)
        spectrum = point.spectrum
        cells = (
            Cell(count(point.trainable_params)),
            Cell(
                f"{point.validation_loss:.3f}", ("best" if point.p_value is None else p_value(point.p_value),)
            ),
            Cell(score(tested.value, metric), (interval(tested, metric),)),
            Cell(count(None))
            if spectrum is None
            else Cell(f"{spectrum.effective_rank:.1f}", (f"90% in {spectrum.directions:.1f}",)),
            Cell(seconds(point.seconds)),
        )
        rows.append((Head(point.system, "recommended" if chosen else "", primary=chosen), cells))
    return Table("Every rank", "Rank", tuple(map(Head, columns)), tuple(rows))
