import dataclasses

import pytest
from tests.evaluation import invented

from manytune.evaluation import quantities, wording
from manytune.evaluation.metrics import METRICS
from manytune.evaluation.results import Comparison, Probe

ROUGE, BLEU = METRICS["rouge1"], METRICS["bleu"]


def compared(verdict, *, ours=(0.41, 0.38, 0.44), theirs=(0.30, 0.28, 0.33), p_value=0.0004):
    evaluation = invented.evaluation(2, metrics=("rouge1",))
    results = []
    for result, (value, low, high) in zip(evaluation.results, (theirs, theirs, ours), strict=True):
        score = dataclasses.replace(result.scores[0], value=value, low=low, high=high)
        results.append(dataclasses.replace(result, scores=(score,)))
    difference = ours[0] - theirs[0]
    found = Comparison(
        "lora", "base", "rouge1", difference, difference - 0.02, difference + 0.02, p_value, p_value, verdict
    )
    return dataclasses.replace(evaluation, results=tuple(results), comparisons=(found,)), found


def test_a_gain_is_called_better_with_its_evidence():
    evaluation, found = compared("better")
    assert wording.claim(found) == "lora is better than base"
    assert wording.evidence(evaluation, found) == (
        "ROUGE-1 0.410 against 0.300, a difference of +0.110 (95% interval +0.090 to +0.130; p < 0.001). "
        "Their intervals do not overlap."
    )


def test_a_gain_with_overlapping_intervals_says_so():
    evaluation, found = compared("better", ours=(0.34, 0.31, 0.37))
    assert wording.evidence(evaluation, found).endswith("Their intervals overlap.")


def test_a_loss_is_called_worse():
    _, found = compared("worse", ours=(0.2, 0.1, 0.3))
    assert wording.claim(found) == "lora is worse than base"


def test_no_evidence_is_said_plainly_and_not_called_equal():
    evaluation, found = compared("cannot tell", ours=(0.29, 0.27, 0.32), p_value=0.4321)
    assert wording.claim(found) == "lora shows no clear difference from base"
    assert wording.evidence(evaluation, found) == (
        "ROUGE-1 0.290 against 0.300, a difference of −0.010 (95% interval −0.030 to +0.010; p = 0.43). "
        "More test prompts would narrow the interval."
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (wording.score(0.41249, ROUGE), "0.412"),
        (wording.score(27.06, BLEU), "27.1"),
        (wording.signed(-1.26, BLEU), "\N{MINUS SIGN}1.3"),
        (wording.p_value(0.0004), "p < 0.001"),
        (wording.p_value(0.0344), "p = 0.034"),
        (wording.p_value(0.4321), "p = 0.43"),
        (quantities.count(134_515_008), "134,515,008"),
        (quantities.count(None), "\N{EN DASH}"),
        (quantities.share(294_912, 124_734_720), "0.24%"),
        (quantities.share(5, 5), "100%"),
        (quantities.share(None, 5), ""),
        (quantities.seconds(8.24), "8.2 s"),
        (quantities.seconds(245.4), "4 min 5 s"),
        (quantities.seconds(4330), "1 h 12 min"),
        (quantities.seconds(None), "\N{EN DASH}"),
        (quantities.size(512), "512 B"),
        (quantities.size(3_670_016), "3.5 MiB"),
        (quantities.size(300 * 2**20), "300 MiB"),
        (quantities.size(6 * 2**30), "6.00 GiB"),
        (quantities.size(None), "\N{EN DASH}"),
    ],
)
def test_figures_read_as_people_write_them(text, expected):
    assert text == expected


def test_the_basis_counts_prompts_and_groups():
    assert wording.basis_sentence(invented.evaluation(3)) == (
        "9 prompts in 3 independent groups, the same for every system."
    )


def probe(name, verdict):
    evaluation, _ = compared(verdict, ours=(0.41, 0.38, 0.44) if verdict != "worse" else (0.2, 0.1, 0.3))
    results = tuple(result for result in evaluation.results if result.name != "full")
    return Probe(name, "", dataclasses.replace(evaluation, results=results))


def test_what_a_system_forgot_is_said_next_to_the_verdict():
    evaluation, _ = compared("better")
    assert wording.forgotten_sentence(evaluation) is None
    asked = dataclasses.replace(
        evaluation, forgetting=(probe("trivia", "worse"), probe("text", "cannot tell"))
    )
    assert wording.forgotten_sentence(asked) == "Forgotten: trivia (ROUGE-1, base 0.300): lora 0.200."
    kept = probe("text", "cannot tell")
    nothing = "We found no evidence of forgetting on other tasks."
    assert said_of(powered(kept, None)) == nothing
    assert (
        said_of(powered(kept, 0.0812)) == f"{nothing} A change of 0.081 in text would be found 4 times of 5."
    )


def test_a_probe_that_could_not_have_shown_it_is_no_evidence():
    weak = powered(probe("text", "cannot tell"), 0.31)
    too_few = "Too few passages to tell whether anything was forgotten on other tasks."
    assert said_of(weak) == too_few, "the base's score is 0.300: all of it could be lost unseen"
    assert said_of(powered(weak, None, clusters=5)) == too_few, "no p-value of 5 passages is below 0.05"
    both = said_of(weak, powered(probe("trivia", "cannot tell"), None))
    assert both.endswith(" on other tasks. Too few passages to tell: text.")


def powered(probe, detectable, *, clusters=30):
    """The probe, if its tests find this change in so many passages."""
    comparisons = tuple(
        dataclasses.replace(one, detectable=detectable) for one in probe.evaluation.comparisons
    )
    inference = dataclasses.replace(probe.evaluation.inference, clusters=clusters)
    inner = dataclasses.replace(probe.evaluation, comparisons=comparisons, inference=inference)
    return dataclasses.replace(probe, evaluation=inner)


def said_of(*probes):
    evaluation, _ = compared("better")
    return wording.forgotten_sentence(dataclasses.replace(evaluation, forgetting=probes))


@pytest.mark.parametrize(
    ("units", "tests", "least"),
    [(5, 1, "0.062"), (6, 1, None), (8, 11, "0.086"), (16, 11, None), (400, 66, None), (400, 600, "0.06")],
)
def test_too_few_units_for_any_significance_are_reported(units, tests, least):
    evaluation, _ = compared("better")
    found = dataclasses.replace(evaluation.comparisons[0], metric=evaluation.primary)
    inference = dataclasses.replace(evaluation.inference, clusters=units, resamples=10_000)
    evaluation = dataclasses.replace(evaluation, comparisons=(found,) * tests, inference=inference)
    sentence = wording.blunt_sentence(evaluation)
    assert (sentence is None) == (least is None)
    assert sentence is None or sentence.startswith(f"With {units} independent units and {tests} comparison")
    assert sentence is None or f"below {least}, so no difference can be significant" in sentence


def test_many_verdicts_are_said_together():
    evaluation, _ = compared("better")
    one, result = evaluation.comparisons[0], evaluation.results[-1]
    names = [f"s{n}" for n in range(6)]
    verdicts = ["better", "better", "worse", "cannot tell", "better", "cannot tell"]
    evaluation = dataclasses.replace(
        evaluation,
        results=(evaluation.results[0], *(dataclasses.replace(result, name=name) for name in names)),
        comparisons=tuple(
            dataclasses.replace(one, system=name, verdict=verdict, difference=0.1, p_adjusted=p)
            for name, verdict, p in zip(names, verdicts, (0.01, 0.02, 0.0001, 0.3, 0.001, 0.9), strict=True)
        ),
    )
    said = [(found.verdict, f"{found.claim}: {found.evidence}") for found in wording.findings(evaluation)]
    start = "by ROUGE-1, from 0.300,"
    assert said == [
        (
            "better",
            f"3 systems are better than base: {start} s0 +0.100, s1 +0.100, s4 +0.100 (each p = 0.020 or less).",
        ),
        (
            "cannot tell",
            f"2 systems show no clear difference from base: {start} s3 +0.100, s5 +0.100.",
        ),
        ("worse", f"1 system is worse than base: {start} s2 +0.100 (p < 0.001)."),
    ]


def with_prompting(**costs):
    """The invented evaluation's second system, as the base with examples in its prompt."""
    evaluation = invented.evaluation(2, metrics=("rouge1",), all_pairs=True)
    base, prompted, trained = evaluation.results
    results = (
        dataclasses.replace(base, cost=dataclasses.replace(base.cost, prompt_tokens=80.0)),
        dataclasses.replace(
            prompted, method="base", cost=dataclasses.replace(prompted.cost, prompt_tokens=412.4)
        ),
        trained,
    )
    return dataclasses.replace(evaluation, results=results)


def test_training_is_compared_with_the_best_prompt_and_its_cost_is_said():
    evaluation = with_prompting()
    _, prompted, trained = evaluation.results
    found = evaluation.comparison(trained.name, "rouge1", prompted.name)
    sentence = wording.prompting_sentence(evaluation)
    assert sentence.startswith(f"Compared with the best of what isn't trained, {wording.claim(found)}: ")
    assert sentence.endswith(f" {prompted.name} reads 412 tokens per request, 5.2 times base's.")
    assert wording.signed(found.difference, ROUGE) in sentence
    alone = dataclasses.replace(evaluation, results=evaluation.results[:2])
    assert wording.prompting_sentence(alone).startswith(
        f"Of what isn't trained, {prompted.name} has the best"
    )
    assert wording.prompting_sentence(invented.evaluation(2, metrics=("rouge1",))) is None


def test_running_text_has_no_answers_that_could_be_empty():
    evaluation = invented.evaluation(1, metrics=("rouge1",))
    items = tuple(dataclasses.replace(item, prompt="") for item in evaluation.items)
    base, *others = evaluation.results
    empty = tuple(dataclasses.replace(answer, text="") for answer in base.answers)
    read = dataclasses.replace(
        evaluation, items=items, results=(dataclasses.replace(base, answers=empty), *others)
    )
    assert wording.degenerate_sentences(read) == []


def test_a_base_that_degenerates_is_named_with_what_follows():
    evaluation = invented.evaluation(1, metrics=("rouge1",))
    base, *others = evaluation.results
    count = len(base.answers)
    loops = [dataclasses.replace(answer, text="Dialogue: " * 20) for answer in base.answers[: count // 2]]
    empty = [dataclasses.replace(base.answers[-1], text=" ")]
    base = dataclasses.replace(base, answers=(*loops, *empty, *base.answers[count // 2 + 1 :]))
    assert wording.degenerate_sentences(dataclasses.replace(evaluation, results=(base, *others))) == [
        f"base degenerates: of its {count} answers, {count // 2} repeats a phrase to the end and 1 is empty. "
        "A gain over such answers doesn't yet make a good fine-tune."
    ]
    assert wording.degenerate_sentences(evaluation) == []
