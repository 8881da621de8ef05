"""How `manytune compare` and `manytune sweep` print what only they find out."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from manytune.evaluation.learning_curve import curve_sentence
from manytune.evaluation.metrics import METRICS
from manytune.evaluation.quantities import DASH, count
from manytune.evaluation.results import Evaluation, Probe
from manytune.evaluation.wording import MARKS, forgotten_sentence, main_sentences, p_value, score, signed


def print_sweep(evaluation: Evaluation) -> None:
    """Print the rank table and the recommendation."""
    sweep = evaluation.sweep
    assert sweep is not None
    console = Console(highlight=False)
    table = _table("", "parameters", "val. loss", "p", "effective rank")
    for point in sweep.points:
        table.add_row(
            Text(point.system, "bold" if point.system == sweep.recommended else ""),
            count(point.trainable_params),
            f"{point.validation_loss:.3f}",
            "best" if point.p_value is None else p_value(point.p_value).removeprefix("p ").removeprefix("= "),
            DASH if point.spectrum is None else f"{point.spectrum.effective_rank:.1f}",
        )
    console.print(table)
    console.print()
    console.print(Text.assemble((f"{sweep.recommended} is enough. ", "bold"), sweep.reason))
    for curve in sweep.curves:
        console.print(curve_sentence(curve))
    console.print()


def print_gains(evaluation: Evaluation, console: Console) -> None:
    """Print degenerate answers, the share of the gain, prompting instead, and what was forgotten."""
    for sentence in (*main_sentences(evaluation), forgotten_sentence(evaluation)):
        if sentence:
            console.print(sentence)
    if not evaluation.forgetting:
        return
    console.print()
    probes = evaluation.forgetting
    table = _table("Forgotten", *(f"{p.name}, {METRICS[p.evaluation.primary].label}" for p in probes))
    baseline = evaluation.results[0].name
    for result in evaluation.results:
        table.add_row(Text(result.name), *(_kept(probe, result.name, baseline) for probe in probes))
    console.print(table)


def _kept(probe: Probe, name: str, baseline: str) -> Text:
    """What a system still has of what one probe measures."""
    known = {result.name: result for result in probe.evaluation.results}
    if name not in known:
        return Text(DASH)
    metric = METRICS[probe.evaluation.primary]
    cell = Text(score(known[name].score(metric.name).value, metric))
    if name == baseline:
        return cell
    found = probe.evaluation.comparison(name, metric.name)
    return cell.append(f" {MARKS[found.verdict]} {signed(found.difference, metric)}", "dim")


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in heads:
        table.add_column(Text(head, overflow="fold"), overflow="fold")
    return table
