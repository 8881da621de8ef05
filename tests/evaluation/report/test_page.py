import dataclasses
import re
from html.parser import HTMLParser

import pytest
from tests.evaluation import invented

from manytune.evaluation.evaluate import System, evaluate
from manytune.evaluation.metrics import METRICS
from manytune.evaluation.report import render_report, write_report
from manytune.evaluation.resampling import Resampling
from manytune.evaluation.results import Answer, Cost, Curves, Item, ScorePoint

FEW = Resampling(resamples=9)
VOID = {"meta", "br", "img", "input", "link", "hr", "path", "rect"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers elements with their attributes and texts."""

    def __init__(self, html):
        super().__init__()
        self.stack, self.elements, self.links = [], [], []
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.handle_data(" ")
        self.links += [
            value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")
        ]
        element = [tag, found, ""]
        self.elements.append(element)
        if tag not in VOID:
            self.stack.append(element)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        for element in self.stack:
            element[2] += data

    def texts(self, tag, css_class=None):
        return [
            " ".join(text.split())
            for name, attributes, text in self.elements
            if name == tag and (css_class is None or css_class in attributes.get("class", "").split())
        ]


@pytest.fixture(scope="module")
def evaluation():
    return invented.evaluation(20)


@pytest.fixture(scope="module")
def page(evaluation):
    return Page(render_report(evaluation, title="Papers in a sentence"))


def test_the_page_needs_nothing_else(evaluation):
    html = render_report(evaluation, title="x")
    found = Page(html)
    assert found.links and all(link.startswith("#") for link in found.links)
    assert not {name for name, _, _ in found.elements} & {"link", "iframe", "img", "object", "base"}
    (policy,) = [a["content"] for name, a, _ in found.elements if a.get("http-equiv")]
    assert policy.startswith("default-src 'none';")
    assert not re.search(r"https?:|url\(|@import", html)


def test_the_verdict_comes_first_in_a_sentence(page):
    first, second = page.texts("div", "verdict")
    assert first.startswith("▲ full is better than base: ROUGE-1 0.")
    assert second.startswith("▲ lora is better than base: ROUGE-1 0.")


def test_a_system_that_is_not_better_is_said_not_to_be():
    asked = invented.items(20)
    base = invented.systems(asked)[0]
    rambling = System("lora", "lora", invented.answers(asked, 0.0, 9, 3.0))
    page = Page(
        render_report(
            evaluate(asked, [base, rambling], [METRICS["rouge1"]], resampling=Resampling(resamples=99)),
            title="x",
        )
    )
    (verdict,) = page.texts("div", "verdict")
    assert verdict.startswith("○ lora shows no clear difference from base: ROUGE-1")


def test_the_score_table_has_every_metric_with_interval_and_verdict(evaluation, page):
    rows = [text for text in page.texts("tr") if re.match(r"ROUGE|BLEU|chrF|Exact|Perplexity", text)]
    assert len(rows) == 2 * 8
    lora = evaluation.result("lora").score("rouge1")
    assert f"{lora.value:.3f} {lora.low:.3f}–{lora.high:.3f} ▲ better" in rows[0]
    assert rows[7].startswith("Perplexity lower is better")


def test_the_cost_table_shows_what_was_measured(page):
    table = next(text for text in page.texts("table") if "Trained parameters" in text)
    assert "Trade-off base full lora Trained parameters – 134,515,008 100% 2,442,240 1.8%" in table
    for expected in ("3 min 1 s 2 min 3 s", "3.63 GiB 1.96 GiB", "513 MiB 9.3 MiB", "1,210 1,840"):
        assert expected in table


def test_tables_have_headers_for_rows_and_columns(page):
    headers = [attributes for name, attributes, _ in page.elements if name == "th"]
    assert headers and all(attributes.get("scope") in ("row", "col") for attributes in headers)


def test_curves_are_drawn_with_a_text_for_those_who_cannot_see_them(page):
    drawing = [a for name, a, _ in page.elements if name == "svg" and a.get("role") == "img"][-1]
    assert re.search(r"lora, training loss \d\.\d\d at step 8 to \d\.\d\d at step 400", drawing["aria-label"])
    classes = [attributes["class"] for name, attributes, _ in page.elements if name == "path"]
    assert sum("training" in names for names in classes) == 2


def test_documents_from_the_largest_gain_to_the_largest_loss(evaluation, page):
    changes = [
        float(re.search(r"lora ([+−]\d\.\d+)", text)[1].replace("−", "-")) for text in page.texts("article")
    ]
    assert len(changes) == 24
    examples, rest = changes[:6], changes[6:]  # the others are folded away
    assert examples == sorted(examples, reverse=True) and rest == sorted(rest, reverse=True)
    changes = examples
    metric = METRICS["rouge1"]
    references = [item.references for item in evaluation.items]
    scores = {r.name: metric.aggregate(metric.statistics(r.answers, references)) for r in evaluation.results}
    gains = scores["lora"] - scores["base"]
    assert (changes[0], changes[-1]) == pytest.approx((gains.max(), gains.min()), abs=6e-4)


def test_a_document_shows_prompt_reference_and_every_answer(evaluation, page):
    article = page.texts("article")[0]
    item = next(item for item in evaluation.items if f"{item.source}:{item.row}" in article.split())
    place = evaluation.items.index(item)
    assert " ".join(item.prompt.split()) in article
    assert item.references[0] in article
    for result in evaluation.results:
        assert result.answers[place].text in article


def test_text_of_users_and_models_is_escaped():
    attack = "<script>alert('x')</script>"
    item = Item(attack, (attack,), attack, 1, task=attack)
    systems = [System(name, "lora", (Answer(attack, 3, "stop"),)) for name in ("base", attack)]
    evaluation = evaluate([item], systems, [METRICS["rouge1"]], resampling=FEW, provenance={attack: attack})
    html = render_report(evaluation, title=attack)
    assert html.count("<script") == 1 and "<script>alert" not in html  # the page's own filters
    assert len(re.findall("&lt;script&gt;", html)) > 10


def test_empty_and_cut_answers_are_marked():
    asked = [Item("p", ("a",), "s", 1), Item("q", ("b",), "s", 2)]
    answers = (Answer(" ", 0, "stop"), Answer("b and", 2, "length"))
    page = Page(
        render_report(
            evaluate(
                asked,
                [System("base", "base", answers)],
                [METRICS["rouge1"]],
                resampling=FEW,
            ),
            title="x",
        )
    )
    assert page.texts("p", "empty") == ["no answer"]
    assert page.texts("span", "cut") == ["… cut at the limit"]
    assert page.texts("div", "verdict") == []


def test_one_system_without_costs_or_curves_leaves_their_parts_out():
    asked = invented.items(2)
    alone = System("base", "base", invented.answers(asked, 0.5, 1, 2.0))
    page = Page(render_report(evaluate(asked, [alone], [METRICS["bleu"]], resampling=FEW), title="x"))
    assert page.texts("h2") == ["Scores", "Documents", "How this was made"]


def test_provenance_names_data_signatures_resampling_and_runs(page):
    footer = page.texts("footer")[0]
    for expected in (
        "papers.jsonl",
        "smooth:exp",
        "over 20 independent units, 500 resamples, seed 0",
        "corrected for the number of comparisons by each metric (Holm), not for the number of metrics",
        "runs/lora/recipe.yaml",
    ):
        assert expected in footer


def test_the_page_is_written_whole(tmp_path, evaluation):
    write_report(evaluation, tmp_path / "report.html", title="Papers")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_report(evaluation, title="Papers")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.fixture(scope="module")
def crowded():
    """Nine trained systems, the best of them in the middle, and more references than anybody reads."""
    asked = [
        dataclasses.replace(item, references=(*item.references, "b c", "d", "e f"))
        for item in invented.items(16)
    ]
    skills = (0.1, *(0.3, 0.4, 0.5, 0.6, 0.9, 0.7, 0.8, 0.6, 0.5))
    systems = [
        System(f"s{n}", "lora", invented.answers(asked, skill, n, 2.0), Cost(trainable_params=n or None))
        for n, skill in enumerate(skills)
    ]
    return evaluate(
        asked, systems, [METRICS["rouge1"], METRICS["chrf"]], resampling=Resampling(resamples=2000)
    )


def test_many_systems_are_rows_and_share_their_verdicts(crowded):
    page = Page(render_report(crowded, title="x"))
    head, first, *_ = page.texts("tr")
    assert (head, first.split()[0]) == ("System ROUGE-1 chrF", "s0")
    verdicts = page.texts("div", "verdict")
    assert 1 <= len(verdicts) <= 3
    better = [one.system for one in crowded.comparisons if (one.metric, one.verdict) == ("rouge1", "better")]
    assert verdicts[0].startswith(f"▲ {len(better)} systems are better than s0: by ROUGE-1, from ")
    assert [name for name in better if f"{name} +" not in verdicts[0]] == []


def test_no_two_systems_of_many_look_alike(crowded):
    page = Page(render_report(crowded, title="x"))
    looks = {
        (tuple(attributes["class"].split()))
        for name, attributes, _ in page.elements
        if name == "span" and "dot" in attributes.get("class", "").split()
    }
    assert len(looks) == 10


def test_of_many_systems_the_documents_are_about_the_best_and_begin_with_few_answers(crowded):
    page = Page(render_report(crowded, title="x"))
    assert all("s5" in text for text in page.texts("span", "soft"))
    boxes = [attributes for name, attributes, _ in page.elements if name == "input" and "value" in attributes]
    assert [box["value"] for box in boxes if "checked" in box] == ["0", "5"]
    assert page.texts("summary").count("1 more") == len(page.texts("article"))


def test_scores_that_were_measured_while_training_have_a_plot_of_their_own():
    asked = invented.items(2)
    scored = Curves(scores={"rouge1": (ScorePoint(0, 0.1), ScorePoint(20, 0.4))})
    systems = [
        System("base", "base", invented.answers(asked, 0.0, 1, 3.0)),
        System("a & b", "lora", invented.answers(asked, 0.5, 2, 2.0), curves=scored),
    ]
    page = Page(render_report(evaluate(asked, systems, [METRICS["rouge1"]], resampling=FEW), title="t"))
    assert "ROUGE-1 while training" in page.texts("h2")
    drawn = [found.get("aria-label") for tag, found, _ in page.elements if tag == "svg"]
    assert "a & b, 0.100 at step 0 to 0.400 at step 20" in drawn


def test_the_top_says_what_was_tried_before_any_score(evaluation):
    facts = {"Base": "SmolLM2", "Data": "papers.jsonl", "Date": "2026-01-31", "Release": "manytune 1"}
    trained = dataclasses.replace(
        evaluation.results[2], provenance={"Hyperparameters": "lora, r=8; learning_rate=0.0002"}
    )
    results = (*evaluation.results[:2], trained)
    html = render_report(dataclasses.replace(evaluation, provenance=facts, results=results), title="T")
    (top,) = Page(html).texts("section", "setup")
    assert top == (
        "Setup Base SmolLM2 Data papers.jsonl Date 2026-01-31 lora lora, r=8; learning_rate=0.0002"
    )
    assert html.index('id="setup"') < html.index('id="scores"')


def test_contents_lead_to_every_section_that_there_is(page):
    titles = {
        attributes["id"]: " ".join(text.split())
        for _, attributes, text in page.elements
        if "id" in attributes
    }
    anchors = {
        attributes["href"][1:]: " ".join(text.split())
        for name, attributes, text in page.elements
        if name == "a"
    }
    headings = {
        attributes["id"] for name, attributes, _ in page.elements if name == "h2" and "id" in attributes
    }
    assert anchors.keys() == headings
    assert all(titles[anchor] == title for anchor, title in anchors.items())
