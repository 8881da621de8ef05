"""The report as Markdown and as a LaTeX table."""

import dataclasses
import re

import pytest
from tests.evaluation import invented
from tests.evaluation.report.whole import whole

from manytune.evaluation.compare import System, evaluate
from manytune.evaluation.metrics import METRICS
from manytune.evaluation.report import render_report
from manytune.evaluation.report.axes import linear, logarithmic, short
from manytune.evaluation.report.gains import change_charts, gain_charts, rank_chart
from manytune.evaluation.report.latex import escape, render_latex
from manytune.evaluation.report.markdown import render_markdown


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
        "Cost",
        "How this was made",
    ]
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "**lora** is enough." in text


def test_pairs_without_the_base_are_said_in_words(evaluation):
    text = render_markdown(evaluation, title="x")
    assert re.search(r"^- lora is .*full.*: [+−]0\.\d+ ROUGE-1 \(.*; p [=<] .*\)\.$", text, re.MULTILINE)
    page = render_report(evaluation, title="x")
    assert "Between the systems" in page


def test_a_recipe_is_shown_as_it_stands(evaluation):
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
    many = evaluate(asked, systems, [METRICS["rouge1"]], all_pairs=True, resamples=50)
    page = render_report(many, title="x")
    assert "<summary>10 pairs by ROUGE-1</summary><ul" in page and few not in page


def test_a_latex_table_has_a_row_a_system_and_marks_what_the_test_found(evaluation):
    lines = render_latex(evaluation).splitlines()
    (base,) = [line for line in lines if line.startswith("base &")]
    (lora,) = [line for line in lines if line.startswith("lora &")]
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", "\n".join(lines))[1]
    assert base.count("&") == lora.count("&") == len(columns) - 1
    assert r"\uparrow" in lora and r"\uparrow" not in base
    assert lora.endswith(r"\\")


def test_latex_is_escaped():
    assert escape("a_b 50% {x} \\ ~^") == (
        r"a\_b 50\% \{x\} \textbackslash{} \textasciitilde{}\textasciicircum{}"
    )


def test_gains_stand_over_parameters_and_seconds(evaluation):
    parameters, seconds = gain_charts(evaluation)
    assert [dot.name for dot in parameters.dots] == ["full", "lora"]
    full, lora = parameters.dots
    assert lora.x < full.x  # fewer parameters
    assert all(dot.high < dot.y < dot.low < parameters.zero for dot in parameters.dots)  # places from the top
    assert [dot.name for dot in seconds.dots] == ["full", "lora"]


def test_the_plateau_begins_at_the_recommended_rank(evaluation):
    chart = rank_chart(evaluation)
    assert [dot.hollow for dot in chart.dots] == [True, False]
    assert chart.plateau == chart.dots[1].x
    assert [tick.label for tick in chart.x_ticks] == ["r=1", "r=8"]


def test_changes_stand_on_the_side_of_their_sign(evaluation):
    text, questions = change_charts(evaluation)
    assert "lower is better" in text.label
    assert all(bar.start + bar.width == pytest.approx(text.zero) for bar in text.bars)  # perplexity fell
    assert all(bar.low <= bar.high for chart in (text, questions) for bar in chart.bars)


def test_axes_hold_their_ends_and_label_powers():
    axis = logarithmic(1e4, 1e8)
    assert [tick.label for tick in axis.ticks] == ["10k", "100k", "1M", "10M", "100M"]
    assert 0 < axis.at(1e4) < axis.at(1e6) < axis.at(1e8) < 100
    assert linear(0.0, 1.0, about=4).at(5.0) == 100.0
    assert [short(value) for value in (7, 950, 999.9999, 12_300, 1.35e8)] == [
        *("7", "950", "1k", "12.3k", "135M")
    ]


def test_one_size_alone_has_an_axis(evaluation):
    axis = logarithmic(500.0, 500.0)
    assert axis.at(500.0) == pytest.approx(50.0)
