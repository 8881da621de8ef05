"""The report as Markdown, and where it says the same as the page."""

import dataclasses
import re

import pytest
from tests.evaluation import invented
from tests.evaluation.report.whole import whole

from manytune.evaluation.evaluate import System, evaluate
from manytune.evaluation.metrics import METRICS
from manytune.evaluation.report import render_report
from manytune.evaluation.report.markdown import render_markdown
from manytune.evaluation.resampling import Resampling


@pytest.fixture(scope="module")
def evaluation():
    return whole()


def test_markdown_has_every_part_and_tables_of_equal_rows(evaluation):
    text = render_markdown(evaluation, title="Worth it?")
    heads = re.findall("^## (.*)$", text, re.MULTILINE)
    assert heads == [
        "Scores",
        "Share of full's gain",
        "Ranks",
        "What was forgotten",
        "ROUGE-1 by task",
        "Quality and cost",
        "How this was made",
    ]
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "**lora** is enough." in text


def test_pairs_without_the_base_are_said_in_words(evaluation):
    text = render_markdown(evaluation, title="x")
    assert re.search(
        r"^- lora (?:is|shows) .*full.*: [+−]0\.\d+ ROUGE-1 \(.*; p [=<] .*\)\.$", text, re.MULTILINE
    )
    page = render_report(evaluation, title="x")
    assert "Between the systems" in page


def test_a_recipe_is_shown_verbatim(evaluation):
    recipe = "data:\n  train: rows.jsonl | <b>\n"
    made = dataclasses.replace(evaluation, provenance={"Base": "a base", "Recipe": recipe})
    text = render_markdown(made, title="x")
    assert text.endswith("\nRecipe:\n\n    data:\n      train: rows.jsonl | <b>\n")
    page = render_report(made, title="x")
    assert '<summary>Recipe</summary><pre class="text">data:\n  train: rows.jsonl | &lt;b&gt;\n</pre>' in page
    assert "<dt>Recipe</dt><dd>data" not in page


def test_many_pairs_are_folded_up_and_few_are_not(evaluation):
    few = "<h3>Between the systems</h3>\n<ul"
    assert few in render_report(evaluation, title="x")
    asked = invented.items(4)
    systems = [System(f"s{n}", "lora", invented.answers(asked, 0.1 * n, n, 2.0)) for n in range(6)]
    many = evaluate(asked, systems, [METRICS["rouge1"]], all_pairs=True, resampling=Resampling(resamples=50))
    page = render_report(many, title="x")
    assert "<summary>10 pairs by ROUGE-1</summary><ul" in page and few not in page
