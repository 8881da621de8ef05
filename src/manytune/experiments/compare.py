"""`manytune compare`: the untouched base and several trained systems, on the same rows with the same budget."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import mean

import torch

from manytune import __version__
from manytune.errors import RunError
from manytune.evaluation.equivalence import Margin
from manytune.evaluation.evaluate import System, evaluate
from manytune.evaluation.hyperparameters import hyperparameters
from manytune.evaluation.inference_cost import InferenceCost
from manytune.evaluation.records import RunRecord
from manytune.evaluation.results import Answer, Cost, Curves, Evaluation
from manytune.experiments.budget import beyond, budget_of
from manytune.experiments.classifying import baseline_facts, baseline_name
from manytune.experiments.inference_costs import inference_costs
from manytune.experiments.probes import probe_results
from manytune.experiments.provenance import describe_sources
from manytune.experiments.recipe import BASE, REFERENCE
from manytune.experiments.runner import Runner
from manytune.experiments.trials import Phase, Purpose, Trial, drop_adapters
from manytune.experiments.variants import steps_by_system
from manytune.experiments.workspace import Workspace
from manytune.store.run_directory import RunDirectory

_TIMED_STEPS = 6


@dataclass(frozen=True)
class Choice:
    """How a system's learning rate was chosen.

    Attributes:
        rate: The one that was chosen.
        losses: The validation loss of each that was tried; empty if there was no choice.
        beyond: Those that are shown to have forgotten more than the budget allows.
    """

    rate: float
    losses: Mapping[float, float]
    beyond: frozenset[float] = frozenset()

    def __str__(self) -> str:
        if not self.losses:
            return f"{self.rate:g}, as the recipe says"
        tried = ", ".join(
            f"{rate:g} ({loss:.3f}{', beyond the budget' * (rate in self.beyond)})"
            if math.isfinite(loss)
            else f"{rate:g} (diverged)"
            for rate, loss in self.losses.items()
        )
        edge = self.rate in (min(self.losses), max(self.losses)) and len(self.losses) > 1
        at_the_edge = "; at the edge of what was tried, so another rate may be better" if edge else ""
        return f"{self.rate:g}, by validation loss among {tried}{at_the_edge}"


def compare(workspace: Workspace, runner: Runner) -> Evaluation:
    """Choose every system's learning rate on validation rows, train it with every seed, and score the answers.

    Args:
        workspace: The experiment's workspace.
        runner: Where trials are run.

    Raises:
        RunError: A training failed, or every learning rate of a system diverged.
    """
    experiment = workspace.experiment
    systems = list(experiment.systems())
    seeds = experiment.compare.seeds
    steps = _budget(workspace, systems)
    base = workspace.ask_base()
    choices = _choose(workspace, runner, steps, base)
    finals = [
        workspace.variants.trial(name, rate=choices[name].rate, seed=seed, steps=steps[name])
        for name in systems
        for seed in seeds
    ]
    runner.run(workspace, Phase.FINISH, finals)
    records = {trial.name: workspace.finish(trial) for trial in finals}
    asked = {name: workspace.ask_prompted(name) for name in experiment.prompted()}
    prompted = {name: [record] for name, record in asked.items() if record is not None}
    by_system = {name: [records[trial.name] for trial in finals if trial.system == name] for name in systems}
    by_system = {**prompted, **by_system}
    notes = {name: {"Learning rate": str(choices[name])} for name in systems}
    evaluation = score(workspace, base, by_system, notes, all_pairs=True)
    if not experiment.compare.inference_cost:
        return evaluation
    first = {trial.system: trial.adapters.get(None) for trial in reversed(finals)}
    return dataclasses.replace(evaluation, answering=_answering(workspace, [*prompted], first))


def _answering(
    workspace: Workspace, prompted: Sequence[str], adapters: Mapping[str, Path | None]
) -> tuple[InferenceCost, ...]:
    """What answering costs the base, the base with examples in its prompt, and every system of one adapter."""
    experiment = workspace.experiment
    if workspace.labels is not None:
        return ()  # a classifier generates nothing
    asked = {BASE: [question.prompt_ids for question in workspace.questions if not question.is_document]}
    if not asked[BASE]:
        return ()
    for name in prompted:
        questions = workspace.few_shot(name).questions[: experiment.compare.limit]
        asked[name] = [question.prompt_ids for question in questions]
    there = {name: path for name, path in adapters.items() if path is not None and path.is_dir()}
    return inference_costs(
        workspace.base,
        asked,
        {name: there[name] for name in experiment.systems() if name in there},
        max_new_tokens=experiment.compare.max_new_tokens,
        kept=experiment.directory / "inference.json",
        say=workspace.reporter.line,
    )


def score(
    workspace: Workspace,
    base: RunRecord,
    records: Mapping[str, Sequence[RunRecord]],
    notes: Mapping[str, Mapping[str, str]],
    *,
    all_pairs: bool,
) -> Evaluation:
    """Score the records of all systems, on the test rows and on the probes.

    Args:
        workspace: The experiment's workspace.
        base: The untouched base's record.
        records: Each system's, one a seed.
        notes: More facts about each system.
        all_pairs: Whether every pair of systems is compared, and not only each with the base.
    """
    experiment = workspace.experiment
    compare_recipe = experiment.compare
    read = mean(len(question.prompt_ids) for question in workspace.questions)
    labels = workspace.labels
    called = BASE if labels is None else baseline_name(labels)
    baseline = System(called, BASE, base.answers, dataclasses.replace(base.cost, prompt_tokens=read))
    free = [
        baseline,
        *(
            _prompted(found[0])
            if name in experiment.prompted()
            else _system(name, found, notes.get(name, {}), read)
            for name, found in records.items()
        ),
    ]
    systems = [
        one
        for system, found in zip(free, ([base], *records.values()), strict=True)
        for one in (system, *([_constrained(system, found)] if compare_recipe.constrained else []))
    ]
    evaluation = evaluate(
        [question.item for question in workspace.questions],
        systems,
        workspace.metrics,
        reference=REFERENCE if REFERENCE in records else None,
        margin=Margin(REFERENCE, compare_recipe.equivalence_margin)
        if REFERENCE in records and compare_recipe.equivalence_margin is not None
        else None,
        all_pairs=all_pairs,
        provenance={
            "Base": f"{workspace.base.name} ({workspace.base.fingerprint})",
            "Data": describe_sources(_sources(workspace)),
            "Date": datetime.now(UTC).date().isoformat(),
            "Rows": f"{workspace.data.train_rows:,} to train on, {workspace.data.validation_rows:,} to validate on",
            **(
                baseline_facts(labels)
                if labels is not None
                else {
                    "Answers": f"greedy, at most {compare_recipe.max_new_tokens} tokens, "
                    f"{workspace.encoder.mode} prompts"
                }
            ),
            "Training seeds": ", ".join(map(str, compare_recipe.seeds)),
            "Release": f"manytune {__version__}, {_packages()}",
            "Machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {workspace.base.model.device.type}",
        },
    )
    probed = {
        probe.name: [
            System(BASE, BASE, base.probes[probe.name]),
            *(
                _of_probe(name, found, probe.name)
                for name, found in records.items()
                if probe.name in found[0].probes
            ),
        ]
        for probe in workspace.probes
    }
    forgetting = probe_results(workspace.probes, probed)
    budget = budget_of(workspace, probed, records)
    return dataclasses.replace(evaluation, forgetting=forgetting, budget=budget)


def _budget(workspace: Workspace, systems: Sequence[str]) -> dict[str, int]:
    """Every system's optimizer steps: as many as the recipe says, or as many as fit into its seconds."""
    seconds = workspace.experiment.compare.seconds
    if seconds is None:
        recipes = workspace.experiment.systems()
        return {name: workspace.steps_with(recipes[name].rows) for name in systems}
    seed = workspace.experiment.compare.seeds[0]
    timed: dict[str, Trial] = {}
    for name in systems:
        rate = workspace.experiment.rates_of(workspace.experiment.systems()[name])[0]
        timed[name] = workspace.variants.trial(
            name, rate=rate, seed=seed, steps=_TIMED_STEPS, purpose=Purpose.TIMING
        )
        workspace.train(timed[name], adapters=False)
        drop_adapters(timed[name])
    return steps_by_system(timed, seconds=seconds)


def _choose(
    workspace: Workspace, runner: Runner, steps: Mapping[str, int], base: RunRecord
) -> dict[str, Choice]:
    """Each system's learning rate, by the validation loss of one training each; the losers' adapters go.

    With a forgetting budget, rates that are shown to be beyond it lose, unless all of them are.
    """
    experiment = workspace.experiment
    seed, shorter = experiment.compare.seeds[0], experiment.compare.search_steps
    searches: dict[str, dict[float, Trial]] = {}
    for name, system in experiment.systems().items():
        rates = experiment.rates_of(system)
        if len(rates) > 1:
            fewer = min(steps[name], shorter or steps[name])
            purpose = Purpose.SEARCH if fewer < steps[name] else Purpose.RESULT
            searches[name] = {
                rate: workspace.variants.trial(name, rate=rate, seed=seed, steps=fewer, purpose=purpose)
                for rate in rates
            }
    runner.run(workspace, Phase.SEARCH, [trial for trials in searches.values() for trial in trials.values()])
    choices = {}
    for name, system in experiment.systems().items():
        if name not in searches:
            choices[name] = Choice(experiment.rates_of(system)[0], {})
            continue
        losses = {rate: workspace.search(trial) for rate, trial in searches[name].items()}
        there = {rate: trial for rate, trial in searches[name].items() if math.isfinite(losses[rate])}
        lost = beyond(workspace, base, there)
        kept = [rate for rate in losses if rate not in lost and rate in there]
        best = min(kept or losses, key=lambda rate: losses[rate])
        if not math.isfinite(losses[best]):
            raise RunError(
                f"{name}: the training diverged at every learning rate ({', '.join(f'{rate:g}' for rate in losses)}). "
                f"Give lower ones in compare.systems.{name}.learning_rates."
            )
        choices[name] = Choice(best, losses, frozenset(lost))
        for rate, trial in searches[name].items():
            if rate != best or trial.purpose is Purpose.SEARCH:
                drop_adapters(trial)
    return choices


def _prompted(record: RunRecord) -> System:
    """The base with examples in its prompt."""
    asked = record.recipe
    how = {
        "random": f"the same for every prompt, by seed {asked['seed']}",
        "similar": "those most similar to each prompt",
    }[asked["choose_shots"]]
    facts = {"Examples in the prompt": f"{asked['shots']} of the training rows, {how}"}
    if asked["shortened"]:
        facts["Fewer examples"] = f"in {asked['shortened']:,} prompts, as no more fit into the context"
    return System(record.system, BASE, record.answers, record.cost, provenance=facts)


def _system(name: str, records: Sequence[RunRecord], notes: Mapping[str, str], read: float) -> System:
    """One system over its seeds: the first one's answers and curves, the mean of the costs."""
    first = records[0]
    return System(
        name,
        first.method,
        first.answers,
        dataclasses.replace(_mean_cost([record.cost for record in records]), prompt_tokens=read),
        first.curves,
        {
            "Method": first.method,
            "Steps": f"{first.steps:,}",
            **hyperparameters(first.recipe),
            **notes,
            "Recipes": ", ".join(_outputs(record) for record in records),
        },
        other_seeds=tuple(record.answers for record in records[1:]),
        seeds=tuple(record.seed for record in records if record.seed is not None),
    )


def _constrained(system: System, records: Sequence[RunRecord]) -> System:
    """The same system with its answers held to the schema."""
    answers, *other_seeds = (record.constrained for record in records)
    return dataclasses.replace(
        system,
        name=f"{system.name}, constrained",
        answers=answers,
        other_seeds=tuple(other_seeds),
        curves=Curves(),
        provenance={**system.provenance, "Answers": "held to the schema"},
    )


def _packages() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "numpy"))


def _sources(workspace: Workspace) -> list[str]:
    """Where the rows come from that are trained on and asked."""
    data = workspace.experiment.recipe.data
    files = [file for task in data.tasks for file in task.file] or list(data.files)
    return [*files, *(question.item.source for question in workspace.questions)]


def _outputs(record: RunRecord) -> str:
    return ", ".join(
        str(RunDirectory(Path(recipe["output"])).recipe_file) for recipe in record.recipe.values()
    )


def _of_probe(name: str, records: Sequence[RunRecord], probe: str) -> System:
    answers: list[tuple[Answer, ...]] = [record.probes[probe] for record in records]
    return System(name, records[0].method, answers[0], other_seeds=tuple(answers[1:]))


def _mean_cost(costs: Sequence[Cost]) -> Cost:
    def average(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return mean(known) if known else None

    memory = [cost.peak_memory_bytes for cost in costs if cost.peak_memory_bytes is not None]
    return Cost(
        trainable_params=costs[0].trainable_params,
        total_params=costs[0].total_params,
        seconds=average([cost.seconds for cost in costs]),
        peak_memory_bytes=max(memory, default=None),
        adapter_bytes=costs[0].adapter_bytes,
        tokens_per_second=average([cost.tokens_per_second for cost in costs]),
    )
