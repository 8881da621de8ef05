"""`manytune sweep`: a method at several ranks, and on several numbers of rows, over one base in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from manytune.errors import RecipeError
from manytune.evaluation.learning_curve import learning_curve
from manytune.evaluation.plateau import find_plateau
from manytune.evaluation.ranks import LearningCurve, RankPoint
from manytune.evaluation.records import GroupLoss, RunRecord
from manytune.evaluation.results import Evaluation
from manytune.experiments.compare import score
from manytune.experiments.recipe import Experiment, experiment_from
from manytune.experiments.runner import Runner
from manytune.experiments.trials import Phase
from manytune.experiments.workspace import Workspace
from manytune.methods.registry import methods


def sweep_experiment(
    experiment: Experiment, ranks: Sequence[int], targets: Sequence[str], rows: Sequence[int] = ()
) -> Experiment:
    """The experiment whose systems are the recipe's method at these ranks, with each of these numbers of rows.

    Everything else of the method stays, LoRA's `lora_alpha` too: the change is scaled by alpha/r, and then the learning
    rate that suits one rank suits the others. So all ranks train with the recipe's own learning rate.

    Args:
        experiment: Its method must have a rank, as LoRA has.
        ranks: At least one.
        targets: Module lists such as `all-linear` or `q_proj,v_proj`; none keeps the recipe's.
        rows: Numbers of training rows; none trains on all. Each training has as many epochs.

    Raises:
        RecipeError: The method has no rank to vary, or a rank or a number of rows is given twice.
    """
    method = experiment.recipe.method
    option = methods()[method.name].rank
    if option is None:
        able = ", ".join(name for name, one in methods().items() if one.rank is not None)
        raise RecipeError(f"a rank sweep is for {able}, and the recipe's method is {method.name}.")
    if len(set(ranks)) != len(ranks):
        raise RecipeError(f"a rank is given twice in {', '.join(map(str, ranks))}.")
    if len(set(rows)) != len(rows):
        raise RecipeError(f"a number of rows is given twice in {', '.join(map(str, rows))}.")
    systems: dict[str, Any] = {}
    for target in targets or [""]:
        for rank in sorted(ranks):
            options: dict[str, Any] = {**method.model_dump(mode="json"), option: rank}
            if target:
                options["target_modules"] = target if target == "all-linear" else target.split(",")
            name = f"r={rank}" + (f" {target}" if len(targets) > 1 else "")
            rate = experiment.recipe.training.learning_rate
            trained = {"method": options, "learning_rates": [rate]}
            for number in sorted(rows):
                systems[f"{name} on {number} rows"] = {**trained, "rows": number}
            if not rows:
                systems[name] = trained
    compare = {**experiment.content.get("compare", {}), "systems": systems}
    return experiment_from({**experiment.content, "compare": compare}, where="sweep")


def sweep(workspace: Workspace, runner: Runner) -> Evaluation:
    """Train every rank with every seed, find the plateau on validation rows, and score the answers.

    Args:
        workspace: The workspace of a `sweep_experiment`, opened with `ranks=True`.
        runner: Where trials are run.

    Raises:
        RunError: A training failed.
    """
    experiment = workspace.experiment
    trials = [
        workspace.variants.trial(
            name, rate=experiment.rates_of(system)[0], seed=seed, steps=workspace.steps_with(system.rows)
        )
        for name, system in experiment.systems().items()
        for seed in experiment.compare.seeds
    ]
    base = workspace.ask_base()
    runner.run(workspace, Phase.FINISH, trials)
    records: dict[str, list[RunRecord]] = {name: [] for name in experiment.systems()}
    for trial in trials:
        records[trial.system].append(workspace.finish(trial))
    evaluation = score(workspace, base, records, {}, all_pairs=False)
    found = find_plateau(
        [_point(name, of_rank) for name, of_rank in records.items()],
        {name: [record.validation for record in of_rank] for name, of_rank in records.items()},
        rows=len(workspace.data.validation),
    )
    curves = _curves(
        found.points, {name: [one.validation for one in of_rank] for name, of_rank in records.items()}
    )
    return dataclasses.replace(evaluation, sweep=dataclasses.replace(found, curves=curves))


def _curves(
    points: Sequence[RankPoint], losses: Mapping[str, Sequence[Sequence[GroupLoss]]]
) -> tuple[LearningCurve, ...]:
    """A learning curve for each rank and list of modules; none if rows weren't varied."""
    alike: dict[str, list[RankPoint]] = {}
    for point in points:
        if point.rows is not None:
            alike.setdefault(point.system.rpartition(" on ")[0], []).append(point)
    return tuple(
        learning_curve(
            label, [point.rows or 0 for point in of_label], [losses[point.system] for point in of_label]
        )
        for label, of_label in alike.items()
    )


def _point(name: str, records: Sequence[RunRecord]) -> RankPoint:
    first = records[0]
    options = first.recipe[""]["method"]
    losses = tuple(record.validation_loss for record in records)
    targets = options.get("target_modules")
    seconds = [record.cost.seconds for record in records if record.cost.seconds is not None]
    return RankPoint(
        system=name,
        rank=int(options[methods()[first.method].rank or ""]),
        targets=targets if isinstance(targets, str) else ", ".join(targets or ["the model's usual modules"]),
        trainable_params=first.cost.trainable_params or 0,
        validation_loss=mean(losses),
        seed_losses=losses,
        seconds=mean(seconds) if seconds else None,
        p_value=None,
        spectrum=first.spectrum,
        rows=first.recipe[""]["data"].get("limit"),
    )
