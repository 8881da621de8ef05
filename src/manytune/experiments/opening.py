"""Opening an experiment's workspace: its base, its rows, its probes, and what an earlier start left."""

from __future__ import annotations

import dataclasses

from manytune.data.labels.label_kinds import AnyLabels
from manytune.data.labels.numeric_labels import NumericLabels
from manytune.errors import DataError, RecipeError
from manytune.evaluation.answers import labelled_questions, questions_from
from manytune.experiments.classifying import label_encoder_of
from manytune.experiments.conditions import date_of, keep_conditions
from manytune.experiments.probes import LoadedProbe, load_probes, write_rehearsal
from manytune.experiments.recipe import Experiment
from manytune.experiments.reporter import Reporter
from manytune.experiments.workspace import Workspace
from manytune.training.inputs import read_inputs
from manytune.training.loop.arguments import check_device
from manytune.training.recipe import Recipe


def open_workspace(experiment: Experiment, reporter: Reporter, *, ranks: bool = False) -> Workspace:
    """Load the base, read the rows and the probes, and see that an earlier start is continued as it began.

    Args:
        experiment: The experiment.
        reporter: Where progress goes.
        ranks: Whether records keep what a rank sweep needs.

    Raises:
        RunError: The directory holds something else, or the data, the base or the training's settings changed since
            the experiment began.
        DataError: A row or a file can't be used.
        RecipeError: A classifier's answers are to be held to a schema.
        StoreError: The base can't be loaded.
    """
    recipe = experiment.recipe
    check_device(recipe.training)
    inputs = read_inputs(recipe, date=date_of(experiment), notify=reporter.line)
    experiment = dataclasses.replace(experiment, recipe=_on_one_scale(inputs.recipe, inputs.labels))
    splits, base, data = inputs.splits, inputs.base, inputs.data
    if not data.validation:
        raise DataError("no validation row is short enough; the learning rate is chosen on validation rows")
    workspace = Workspace(experiment, base, splits, data, (), (), ranks, reporter, inputs.labels)
    if inputs.labels is not None:
        if experiment.compare.constrained or experiment.compare.json_schema is not None:
            raise RecipeError(
                "compare.json_schema and compare.constrained are for answers that are generated"
            )
        probes: tuple[LoadedProbe, ...] = ()
        encoder = label_encoder_of(base, inputs.labels, recipe.data)
        questions = labelled_questions(splits.test, encoder)[: experiment.compare.limit]
    else:
        probes = load_probes(experiment.forgetting, base, workspace.encoder)
        questions = questions_from(splits.test, workspace.encoder)[: experiment.compare.limit]
    keep_conditions(experiment, base, data)
    rehearsing = any(system.rehearse is not None for system in experiment.systems().values())
    if rehearsing and experiment.forgetting.rehearsal is None:
        write_rehearsal(workspace.variants.rehearsal_file)
    return dataclasses.replace(workspace, probes=probes, questions=questions)


def _on_one_scale(recipe: Recipe, labels: AnyLabels | None) -> Recipe:
    """The recipe with the scale of a regression's labels, so that trainings on fewer rows have comparable losses."""
    if not isinstance(labels, NumericLabels):
        return recipe
    scale = {"mean": labels.scale.mean, "deviation": labels.scale.deviation}
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"standardize": scale})})
