import dataclasses

import pytest
from tests.evaluation import invented

from manytune.cli.outputs.evaluation import summary
from manytune.errors import DataError
from manytune.evaluation.certainty import equivalence_sentence, power_sentence, power_text
from manytune.evaluation.equivalence import Equivalence, Margin
from manytune.evaluation.evaluate import System, evaluate, part
from manytune.evaluation.metrics import METRICS
from manytune.evaluation.report.page import render_report
from manytune.evaluation.resampling import Resampling
from manytune.evaluation.results import read_evaluation, write_evaluation
from manytune.evaluation.wording import between_systems, evidence, main_sentences, prompting_sentence


@pytest.fixture(scope="module")
def found():
    """`lora` and `twin`, which answers as `full` does, compared with `full`."""
    asked = invented.items(40)
    base, full, lora = invented.systems(asked)
    twin = dataclasses.replace(lora, name="twin", answers=full.answers)
    return invented.evaluation(
        40,
        metrics=("rouge1", "perplexity"),
        among=[base, full, lora, twin],
        resamples=300,
        reference="full",
        margin=Margin("full", 0.3),
        all_pairs=True,
    )


def test_a_system_with_the_references_answers_is_within_the_margin_and_the_base_is_not_asked_about(found):
    by_system = {one.system: one for one in found.equivalences if one.metric == "rouge1"}
    assert set(by_system) == {"lora", "twin"}
    twin = by_system["twin"]
    assert (twin.ratio, twin.verdict, twin.prompts_needed) == (pytest.approx(1.0), "within", None)
    assert twin.p_value < 0.05
    assert f"shown for twin ({100 * twin.ratio:.3g}%" in equivalence_sentence(found)
    assert equivalence_sentence(found) in main_sentences(found)
    assert equivalence_sentence(found).replace("'", "&#39;") in render_report(found, title="t")


def test_what_is_not_shown_says_how_many_prompts_would_show_it(found):
    one = Equivalence("lora", "full", "rouge1", 0.02, 0.985, 0.95, 1.021, 0.3, "cannot tell", 1873)
    sentence = equivalence_sentence(dataclasses.replace(found, equivalences=(one,)))
    assert sentence == (
        "Within 2% of full by ROUGE-1 (two one-sided tests, 90% intervals): cannot tell for lora (98.5%, 95% to "
        "102.1%; about 1,900 prompts would show it 4 times of 5 if they are equal)."
    )
    hopeless = dataclasses.replace(one, prompts_needed=None)
    assert "no number of prompts" in equivalence_sentence(
        dataclasses.replace(found, equivalences=(hopeless,))
    )
    worse = dataclasses.replace(one, ratio=0.9, low=0.85, high=0.95, verdict="worse")
    sentence = equivalence_sentence(dataclasses.replace(found, equivalences=(worse,)))
    assert "shown not to be so for lora, which is worse by more than 2% (90%, 85% to 95%)" in sentence


def test_power_stands_next_to_every_test_that_found_nothing(found):
    open_ones = [one for one in found.comparisons if one.verdict == "cannot tell" and one.detectable]
    assert open_ones and all(power_text(one) for one in open_ones)
    lora = found.comparison("lora", "rouge1", "full")
    assert lora.verdict == "cannot tell"
    assert power_text(lora) == f"a difference of {lora.detectable:.3f} would be found 4 times of 5"
    factor = (lora.detectable / abs(lora.difference)) ** 2
    assert f"about {float(f'{120 * factor:.2g}'):,.0f} prompts" in power_sentence(found, lora)
    assert power_sentence(found, lora) in evidence(found, lora)
    assert any(power_text(lora) in sentence for sentence in between_systems(found))
    better = found.comparison("full", "rouge1")
    assert better.verdict == "better" and power_text(better) == ""


def test_equivalences_are_kept_and_a_part_has_its_systems_alone(found, tmp_path):
    write_evaluation(found, tmp_path / "e.json")
    assert read_evaluation(tmp_path / "e.json").equivalences == found.equivalences
    alone = part(found, "twin")
    assert {one.system for one in alone.equivalences} == {"twin"}
    assert all(one.baseline == "base" for one in alone.comparisons)
    assert [one["system"] for one in summary(found, [])["equivalences"]] == ["lora", "twin"] * 2


def test_systems_from_elsewhere_are_not_taken_for_prompts_of_a_base():
    asked = invented.items(3)
    systems = [
        System(name, "elsewhere", invented.answers(asked, 0.5, seed, 2.0)) for seed, name in enumerate("ab")
    ]
    found = evaluate(asked, systems, [METRICS["rouge1"]], resampling=Resampling(resamples=99))
    assert prompting_sentence(found) is None


def test_a_reference_that_is_no_system_is_refused():
    asked = invented.items(2)
    base = System("base", "base", invented.answers(asked, 0.5, 1, 2.0))
    with pytest.raises(DataError, match="the reference 'full' isn't among the systems: base"):
        evaluate(
            asked,
            [base],
            [METRICS["rouge1"]],
            margin=Margin("full", 0.02),
            resampling=Resampling(resamples=9),
        )
