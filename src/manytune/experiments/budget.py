"""A forgetting budget while learning rates are chosen, and when everything has been asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from manytune.evaluation.budgets import Budget, Limit
from manytune.evaluation.evaluate import System
from manytune.evaluation.forgetting_budget import keep_to, spent_on
from manytune.evaluation.metrics import METRICS
from manytune.evaluation.records import RunRecord, read_answers_to, write_answers_to
from manytune.evaluation.results import Answer
from manytune.experiments.probes import LoadedProbe, probes_digest
from manytune.experiments.recipe import BASE
from manytune.experiments.trials import Trial
from manytune.experiments.workspace import Workspace
from manytune.store.attaching import attached


def probe_of(workspace: Workspace) -> tuple[LoadedProbe, Limit] | None:
    """The budget's probe and its limit; None without a budget."""
    recipe = workspace.experiment.forgetting
    if recipe.probe is None or recipe.at_most is None:
        return None
    probe = next(one for one in workspace.probes if one.name == recipe.probe)
    return probe, Limit(probe.name, recipe.at_most)


def beyond(workspace: Workspace, base: RunRecord, trials: Mapping[float, Trial]) -> set[float]:
    """The learning rates whose trainings are shown to have lost more than the budget allows; none without a budget.

    Args:
        workspace: The experiment's workspace.
        base: The untouched base's record.
        trials: The training of each rate that didn't diverge; adapters that are gone aren't made again.
    """
    found = probe_of(workspace)
    if found is None:
        return set()
    probe, limit = found
    lost = set()
    for rate, trial in trials.items():
        answers = ask_trial(workspace, trial, probe)
        if answers is None:
            continue
        systems = [System(BASE, BASE, base.probes[probe.name]), System(trial.system, "", answers)]
        (spent,) = spent_on(probe.items, systems, METRICS[probe.metric], limit.at_most)
        if spent.verdict == "beyond":
            lost.add(rate)
    return lost


def ask_trial(workspace: Workspace, trial: Trial, probe: LoadedProbe) -> tuple[Answer, ...] | None:
    """A trained trial's answers to one probe, or what it answered before; None without a single adapter on disk."""
    path = workspace.experiment.directory / "probed" / f"{trial.name}.json"
    digest = probes_digest([probe])
    if path.is_file() and (kept := read_answers_to(path, digest)) is not None:
        return kept
    adapter = trial.adapters.get(None)
    if adapter is None or not adapter.is_dir():
        return None
    workspace.reporter.line(f"asking {trial.name} about {probe.name}")
    activations = workspace.experiment.recipe.training.activations
    with attached(workspace.base, adapter, activations=activations) as model:
        answers = workspace.ask_probe(model, probe)
    write_answers_to(path, digest, answers)
    return answers


def budget_of(
    workspace: Workspace, probed: Mapping[str, Sequence[System]], records: Mapping[str, Sequence[RunRecord]]
) -> Budget | None:
    """What every system lost, and the best one that keeps to the budget; None without a budget.

    Args:
        workspace: The experiment's workspace.
        probed: By the probe's name, the systems with their answers, the base first.
        records: Each system's, one a seed.
    """
    found = probe_of(workspace)
    if found is None:
        return None
    probe, limit = found
    spent = spent_on(probe.items, probed[probe.name], METRICS[probe.metric], limit.at_most)
    losses = {
        name: mean(one.curves.validation[-1].loss for one in of_system)
        for name, of_system in records.items()
        if all(one.curves.validation for one in of_system)
    }
    return keep_to(limit, spent, losses)
