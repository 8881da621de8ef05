"""Examples in the prompt: which, in what order, as what turns, and how many fit."""

import math

import pytest
from tests.experiments.tiny_experiment import Reported, experiment
from tests.store.tiny import tiny_tokenizer

from manytune.data.encoding.encode import Encoder
from manytune.data.templates import Example, Segment
from manytune.errors import DataError, RecipeError
from manytune.evaluation.records import read_record
from manytune.experiments.compare import compare
from manytune.experiments.few_shot import few_shot_questions, most_similar
from manytune.experiments.opening import open_workspace
from manytune.experiments.recipe import experiment_from
from manytune.experiments.runner import InTurn


def example(prompt: str, answer: str, task: str | None = None) -> Example:
    segments = (Segment("system", "be brief"), Segment("user", prompt))
    return Example(segments, answer, "rows.jsonl", 1, task=task)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(tiny_tokenizer(), max_length=None)


TRAINING = [example("a b", "1"), example("c d", "2"), example("a c", "3"), example("a b", "4")]


def prompts(encoder, asked, **options):
    found = few_shot_questions(asked, TRAINING, encoder, **options)
    return [question.item.prompt for question in found.questions], found.shortened


def test_the_most_similar_examples_come_last_and_rows_with_one_prompt_are_one_example(encoder):
    (prompt,), shortened = prompts(encoder, [example("a b", "?")], shots=2, choose="similar")
    assert prompt == "be brief\n\na c\n\n3\n\na b\n\n1\n\na b"
    assert shortened == 0


def test_random_examples_are_the_same_for_every_question_and_fewer_are_the_first_of_more(encoder):
    asked = [example("d d", "?"), example("b b", "?")]
    three, _ = prompts(encoder, asked, shots=3, seed=5)
    one, _ = prompts(encoder, asked, shots=1, seed=5)
    before = [prompt.removesuffix(f"\n\n{end}") for prompt, end in zip(three, ("d d", "b b"), strict=True)]
    assert before[0] == before[1]
    assert one[0].removesuffix("\n\nd d") == "\n\n".join(before[0].split("\n\n")[:3])
    assert len({prompts(encoder, asked, shots=3, seed=seed)[0][0] for seed in range(40)}) == math.factorial(3)


@pytest.mark.parametrize("choose", ["random", "similar"])
def test_examples_that_do_not_fit_are_left_out_and_counted(encoder, choose):
    asked = [example("a b", "?"), example("c d " * 9, "?")]
    full = few_shot_questions(asked, TRAINING, encoder, shots=2, choose=choose)
    room = len(full.questions[0].prompt_ids)
    found = few_shot_questions(asked, TRAINING, encoder, shots=2, choose=choose, room=room)
    assert found.questions[0] == full.questions[0]
    assert len(found.questions[1].prompt_ids) < len(full.questions[1].prompt_ids)
    assert found.shortened == 1
    # What is left is what was chosen first: the most similar, or the first of the random ones.
    alone = few_shot_questions(asked[:1], TRAINING, encoder, shots=1, choose=choose)
    fits_one = few_shot_questions(asked[:1], TRAINING, encoder, shots=2, choose=choose, room=room - 1)
    assert fits_one.questions == alone.questions


def test_examples_are_of_the_questions_own_task(encoder):
    rows = [example("a b", "1", "one"), example("a b", "2", "two")]
    found = few_shot_questions([example("a", "?", "two"), example("a", "?", "one")], rows, encoder, shots=1)
    assert [question.item.prompt.split("\n\n")[2] for question in found.questions] == ["2", "1"]
    with pytest.raises(
        DataError, match="2 shots were asked for, and the training rows of the task 'two' have 1 prompt"
    ):
        few_shot_questions([example("a", "?", "two")], rows, encoder, shots=2)


def test_similarity_is_the_cosine_of_tf_idf_by_its_formula():
    texts = ["red cat", "red dog dog", "blue bird", "dog"]
    # By hand: idf(red) = idf(dog) = ln(5/3) + 1 = 1.5108, idf(cat) = ln(5/2) + 1 = 1.9163.
    # "dog red": with "red dog dog" (1 + 2) / (sqrt(2) sqrt(5)) = 0.949, with "dog" 0.707, with "red cat"
    # 1.5108 / (sqrt(2) sqrt(1.5108² + 1.9163²)) = 0.438, with "blue bird" 0.
    assert most_similar(["DOG, red!", "bird"], texts, 4) == [[1, 3, 0, 2], [2, 0, 1, 3]]
    assert most_similar(["unknown"], texts, 2) == [[0, 1]]


def test_a_comparison_asks_the_base_with_examples_keeps_the_record_and_counts_what_is_read(tmp_path):
    systems = {
        "base-0": {},
        "base-1": {},
        "near": {"shots": 2, "choose_shots": "similar"},
        "LoRA": {"learning_rates": [0.03]},
    }
    wanted = experiment(tmp_path, systems=systems)
    evaluation = compare(open_workspace(wanted, Reported()), InTurn())
    assert [result.name for result in evaluation.results] == ["base", "base-1", "near", "LoRA"]
    read = [result.cost.prompt_tokens for result in evaluation.results]
    assert read[0] == read[3] < read[1] < read[2]
    assert evaluation.result("near").provenance["Examples in the prompt"].startswith("2 of the training rows")
    assert evaluation.comparison("LoRA", "chrf", "near").difference == pytest.approx(
        evaluation.result("LoRA").score("chrf").value - evaluation.result("near").score("chrf").value
    )
    record = read_record(tmp_path / "experiment" / "records" / "near.json")
    assert record.answers == evaluation.result("near").answers
    again = Reported()
    assert compare(open_workspace(wanted, again), InTurn()) == evaluation
    assert not any("asking" in line for line in again.lines)


def test_a_comparison_of_prompts_alone_trains_nothing(tmp_path):
    reported = Reported()
    wanted = experiment(tmp_path, systems=["base-1"])
    evaluation = compare(open_workspace(wanted, reported), InTurn())
    assert [result.name for result in evaluation.results] == ["base", "base-1"]
    assert reported.trained() == []


def content_with(tmp_path, systems):
    return {
        "data": {"train": str(tmp_path / "a.jsonl"), "prompt": "{{ q }}", "completion": "{{ a }}"}
        | {"validation": 0.1, "test": 0.1},
        "compare": {"systems": systems},
    }


def test_systems_may_be_listed_by_name(tmp_path):
    found = experiment_from(content_with(tmp_path, ["base-0", "base-5", "full", "ia3"]))
    assert {name: system.shots for name, system in found.prompted().items()} == {"base-5": 5}
    assert {name: found.method_of(system).name for name, system in found.systems().items()} == {
        "full": "full",
        "ia3": "ia3",
    }
    assert experiment_from(content_with(tmp_path, "base-0, base-5, full, ia3")).compare == found.compare


@pytest.mark.parametrize(
    ("systems", "message"),
    [
        (["base-1", "lroa"], "found 'lroa'; did you mean 'lora'?"),
        ({"x": {"shots": 2, "learning_rates": [0.1]}}, "shots train nothing"),
        ({"x": {"choose_shots": "similar"}}, "choose_shots chooses the examples of `shots`"),
        ({"x": {"shots": 0}}, "compare.systems.x.shots"),
    ],
)
def test_what_cannot_be_compared_is_named(tmp_path, systems, message):
    with pytest.raises(RecipeError) as caught:
        experiment_from(content_with(tmp_path, systems))
    assert message in str(caught.value)
