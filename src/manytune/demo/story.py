"""The demo from beginning to end: measure, plan, train twice, ask three systems, report."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Literal

from rich.console import Console

from manytune import __version__
from manytune.data.encoding.encode import Encoder
from manytune.data.readers import read
from manytune.data.templates import Example
from manytune.demo.aclsum import read_papers, write_rows
from manytune.demo.answers import Answered, answer_until
from manytune.demo.machine import Machine, measure
from manytune.demo.plan import (
    PASSAGES,
    VALIDATION_PAPERS,
    Plan,
    Speed,
    Workload,
    affords_passages,
    long_plan,
    make_plan,
    plan_rest,
)
from manytune.demo.recipes import BASE, BASE_TITLE, DATA, MAX_LENGTH, MAX_NEW_TOKENS, make_recipe
from manytune.demo.systems import NAMES, Respondent, load_systems
from manytune.demo.wording import plan_lines, rest_line
from manytune.demo.workload import time_step, workload_of
from manytune.errors import RunError
from manytune.evaluation.answers import Question, questions_from
from manytune.evaluation.evaluate import System, evaluate
from manytune.evaluation.metrics import metrics_named
from manytune.evaluation.report import write_report
from manytune.evaluation.results import Answer, Evaluation, write_evaluation
from manytune.evaluation.run_files import read_cost, read_curves, read_hyperparameters
from manytune.experiments.probes import LoadedProbe, manual_probe, probe_results
from manytune.store.adapters import add_scores
from manytune.store.base import load_base, load_tokenizer
from manytune.store.run_contents import is_of_a_run
from manytune.store.run_directory import RunDirectory
from manytune.training.progress import ProgressDisplay, duration
from manytune.training.run import TrainedRun, run

METRICS = ("rouge1", "rouge2", "rougeL", "bleu", "chrf")
"""The scores of the demo; the first decides."""

FEWEST_PAPERS = 4
"""Test papers that are asked about even if the time is up."""

UNSEEN = "unseen.jsonl"
"""Rows of a paper that belongs to no training, for trying the adapter."""

_CAUTION = 1.2
"""A step of the training takes this much longer than the one that was timed: the optimizer, and a machine that is
never as fast as when one looks."""

_PROBE_PAPERS = 20  # enough to know the papers' mean length


@dataclass(frozen=True)
class Finished:
    """What the demo leaves behind.

    Attributes:
        evaluation: Every answer and score.
        lora: The LoRA training; its run directory holds the adapter.
        report: The page.
        results: The evaluation as JSON.
        unseen: Rows to try the adapter on.
        seconds: How long it all took.
    """

    evaluation: Evaluation
    lora: TrainedRun
    report: Path
    results: Path
    unseen: Path
    seconds: float


def run_demo(directory: Path, *, minutes: float | None, console: Console, started: float) -> Finished:
    """Run the demo.

    Args:
        directory: Where everything goes; an earlier demo there is replaced.
        minutes: The time budget; None runs the long version.
        console: Where progress is printed.
        started: When the budget began, by `time.monotonic`.

    Raises:
        DataError: The demo's data isn't installed.
        StoreError: The demo's base can't be loaded.
        RunError: The directory holds something else than a demo.
    """

    def left() -> float:
        return float("inf") if minutes is None else started + 60 * minutes - time.monotonic()

    _require_place(directory)
    _heading(console, "1. This machine, and what fits")
    write_data(directory)
    machine = measure()
    workload, speed = _look(directory, machine, console)
    gc.collect()  # the base that was looked at; each training loads its own
    plan = long_plan(workload, speed) if minutes is None else make_plan(workload, speed, left())
    for line in plan_lines(machine, plan):
        console.print(line)

    _heading(console, "2. LoRA")
    lora = _train("lora", directory, plan.lora.units, console)
    if minutes is not None:
        speed = Speed.measured(plan.lora.units * workload.lora / lora.training.step_seconds)
        after = plan_rest(plan, workload, speed, left())
        console.print(rest_line(plan, after, left()))
        plan = after

    _heading(console, "3. Full fine-tuning, for comparison")
    full = _train("full", directory, plan.full.units, console)

    _heading(console, "4. The same test papers for all three")
    systems = load_systems(lora, full, device=machine.device)
    probed = _probe(systems, console) if affords_passages(plan, workload, speed) else None
    answered = _ask(directory, systems, plan, left(), console)

    evaluation = _evaluate(answered, probed, (lora, full), machine, minutes)
    report, results = directory / "report.html", directory / "results.json"
    write_evaluation(evaluation, results)
    write_report(evaluation, report, title="What did fine-tuning improve?")
    for trained, name in ((lora, NAMES[1]), (full, NAMES[2])):
        scores = {score.metric: score.value for score in evaluation.result(name).scores}
        add_scores(trained.adapter, scores)
    return Finished(evaluation, lora, report, results, directory / DATA / UNSEEN, time.monotonic() - started)


def _require_place(directory: Path) -> None:
    """Refuse a directory that holds something else than a demo; one that was stopped before its first run has rows."""
    if not directory.is_dir():
        return
    begun = any(is_of_a_run(RunDirectory(directory / run)) for run in ("lora", "full"))
    if not begun and any(entry.name not in (DATA, "lora") for entry in directory.iterdir()):
        raise RunError(
            f"{directory}: the directory isn't empty and holds no demo. Set --output to another one, or empty it."
        )


def write_data(directory: Path) -> None:
    """Write the demo's rows the way a user's own would look: one JSON object a line.

    Validation gets few papers, since a budget of minutes has no time for more.

    Raises:
        DataError: The demo's data isn't installed.
    """
    data = directory / DATA
    validation = read_papers("validation")
    files = {
        "train.jsonl": read_papers("train"),
        "validation.jsonl": validation[:VALIDATION_PAPERS],
        "test.jsonl": read_papers("test"),
        UNSEEN: validation[-1:],
    }
    data.mkdir(parents=True, exist_ok=True)
    for name, papers in files.items():
        write_rows(data / name, papers)


def read_questions(directory: Path) -> tuple[Question, ...]:
    """The questions on the test papers, encoded as training encoded its own; the aspect is each one's task."""
    encoder = Encoder(load_tokenizer(BASE), max_length=None)
    return questions_from(_examples(directory, "test.jsonl"), encoder)


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(text, style="bold")


def _look(directory: Path, machine: Machine, console: Console) -> tuple[Workload, Speed]:
    """Count what there is to do and time one training step."""
    recipe = make_recipe("lora", directory, steps=1)
    base = load_base(
        BASE, device=machine.device, notify=lambda line: console.print(line, markup=False, highlight=False)
    )
    encoder = Encoder(base.tokenizer, max_length=MAX_LENGTH, overflow="drop")
    rows = encoder.encode_all(_examples(directory, "train.jsonl")[: 3 * _PROBE_PAPERS]).kept
    papers = [tuple(group) for _, group in groupby(rows, key=lambda row: row.group)]
    workload = workload_of(base.model, papers)
    typical = sorted(papers, key=lambda paper: len(paper[0].prompt_ids))[len(papers) // 2]
    seconds = time_step(base.model, typical, recipe)
    return workload, Speed.measured(workload_of(base.model, [typical]).lora / seconds / _CAUTION)


def _examples(directory: Path, name: str) -> tuple[Example, ...]:
    template = make_recipe("lora", directory, steps=1).data.prompt_template()
    records = read(str(directory / DATA / name)).kept
    return tuple(replace(template.render(record), task=str(record.fields["aspect"])) for record in records)


def _train(method: Literal["lora", "full"], directory: Path, steps: int, console: Console) -> TrainedRun:
    """One run, exactly as `manytune train` would make it of the same recipe."""
    with ProgressDisplay(console) as progress:
        trained = run(make_recipe(method, directory, steps=steps), overwrite=True, report=progress)
    gc.collect()  # the optimizer's state and the gradients go before the next phase begins
    training = trained.training
    console.print(
        f"{training.trainable_parameters:,} parameters trained in {duration(training.seconds)}; "
        f"{trained.adapter} is {sum(f.stat().st_size for f in trained.adapter.glob('*')) / 2**20:.1f} MiB.",
    )
    return trained


@dataclass(frozen=True)
class _Probed:
    """What every system made of running text that has nothing to do with the papers."""

    probe: LoadedProbe
    answers: dict[str, tuple[Answer, ...]]


def _probe(systems: Mapping[str, Respondent], console: Console) -> _Probed:
    """Let every system read a few passages, before the papers take the rest of the time."""
    console.print("Each reads a few passages of something else, to see what it forgot.")
    base = systems[NAMES[0]]
    probe = manual_probe(base.tokenizer, most=PASSAGES, positions=base.positions)
    return _Probed(probe, {name: system.read(probe.passages) for name, system in systems.items()})


def _ask(
    directory: Path, systems: Mapping[str, Respondent], plan: Plan, seconds_left: float, console: Console
) -> Answered:
    questions = read_questions(directory)
    papers = [tuple(group) for _, group in groupby(questions, key=lambda question: question.item.group)]
    started = time.monotonic()

    def progress(name: str, first: int, last: int) -> None:
        elapsed = duration(time.monotonic() - started)
        console.print(f"{elapsed:>12}  papers {first} to {last}: {name} answers")

    return answer_until(
        papers,
        systems,
        seconds=seconds_left - plan.reserved / 2,
        least=FEWEST_PAPERS,
        progress=progress,
    )


def _evaluate(
    answered: Answered,
    probed: _Probed | None,
    trained: Sequence[TrainedRun],
    machine: Machine,
    minutes: float | None,
) -> Evaluation:
    systems = [System(NAMES[0], "base", answered.answers[NAMES[0]])]
    for name, one in zip(NAMES[1:], trained, strict=True):
        systems.append(
            System(
                name,
                one.method,
                answered.answers[name],
                read_cost(one.directory, one.adapter),
                read_curves(one.directory),
                {
                    **read_hyperparameters(one.directory),
                    "Recipe": str(RunDirectory(one.directory).recipe_file),
                    "Adapter": str(one.adapter),
                },
            )
        )
    evaluation = evaluate(
        [question.item for question in answered.questions],
        systems,
        metrics_named(METRICS),
        reference=NAMES[2],
        all_pairs=True,
        provenance={
            "Base": BASE_TITLE,
            "Data": f"ACLSum, the first {answered.papers} of 100 test papers, three questions on each abstract",
            "Date": datetime.now(UTC).date().isoformat(),
            "Answers": f"greedy, at most {MAX_NEW_TOKENS} tokens",
            "Budget": "none" if minutes is None else f"{minutes:g} minutes",
            "Machine": f"{machine.gflops:.0f} GFLOP/s in float32 matrix products, {machine.threads} threads",
            "Release": f"manytune {__version__}",
        },
    )
    if probed is None:
        return evaluation
    read = [replace(system, answers=probed.answers[system.name]) for system in systems]
    return replace(evaluation, forgetting=probe_results([probed.probe], {probed.probe.name: read}))
