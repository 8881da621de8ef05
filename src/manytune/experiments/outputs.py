"""What an experiment leaves behind for people and for programs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from manytune.atomic import atomic_write
from manytune.evaluation.report import write_report
from manytune.evaluation.report.latex import render_latex
from manytune.evaluation.report.markdown import render_markdown
from manytune.evaluation.results import Evaluation, write_evaluation
from manytune.experiments.recipe import Experiment

RECIPE_NAME = "recipe.yaml"


def write_outputs(evaluation: Evaluation, experiment: Experiment, *, title: str, command: str) -> list[Path]:
    """Write the evaluation as a page, as Markdown, as a LaTeX table and as JSON, next to the recipe.

    Args:
        evaluation: What was found.
        experiment: Its directory is where to.
        title: The page's heading.
        command: What makes it again, with `{recipe}` for the recipe that is written.

    Returns:
        The files, the page first.
    """
    directory = experiment.directory
    recipe = directory / RECIPE_NAME
    content = yaml.safe_dump(experiment.content, sort_keys=False, allow_unicode=True)
    atomic_write(recipe, content)
    made_again = {"Command": command.format(recipe=recipe), "Recipe": content}
    provenance = {**evaluation.provenance, **made_again}
    evaluation = dataclasses.replace(evaluation, provenance=provenance)
    page, text, table, record = (
        directory / name for name in ("report.html", "report.md", "table.tex", "results.json")
    )
    write_report(evaluation, page, title=title)
    atomic_write(text, render_markdown(evaluation, title=title))
    atomic_write(table, render_latex(evaluation))
    write_evaluation(evaluation, record)
    return [page, text, table, record]
