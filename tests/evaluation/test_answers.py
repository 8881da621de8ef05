from dataclasses import dataclass, replace

import pytest

from manytune.data.encoding.answer_format import AnswerFormat
from manytune.data.encoding.encoded import Encoded
from manytune.data.templates import Example, Segment
from manytune.errors import DataError
from manytune.evaluation.answers import ask, each_turn, questions_from


@dataclass(frozen=True)
class Said:
    token_ids: tuple[int, ...]
    text: str
    finished: str


class LetterEncoder:
    """One token a letter, and a template that writes an empty block before an answer."""

    answers = AnswerFormat("<think></think>", "", "$", ("<think>", "</think>"))

    def of(self, example):
        return self

    def reference(self, example):
        return self.answers.reference(example.completion)

    def encode(self, example):
        prompt = "".join(segment.text for segment in example.segments)
        return Encoded(
            tuple(map(ord, prompt)),
            tuple(map(ord, example.completion)),
            example.source,
            example.row,
            example.group,
        )


def example(prompt, completion, row, **more):
    return Example((Segment("user", prompt),), completion, "rows.jsonl", row, **more)


def test_rows_with_the_same_prompt_are_references_of_one_item():
    rows = [example("a?", "x", 1), example("b?", "y", 2), example("a?", "zz", 3)]
    first, second = questions_from(rows, LetterEncoder())
    assert (first.item.references, first.item.row) == (("x", "zz"), 1)
    assert [encoded.completion_ids for encoded in first.encoded] == [(120,), (122, 122)]
    assert first.prompt_ids == (97, 63)
    assert second.item.references == ("y",)


def test_the_same_prompt_in_two_tasks_is_two_items():
    rows = [example("a?", "x", 1, task="one"), example("a?", "y", 2, task="two")]
    assert [question.item.task for question in questions_from(rows, LetterEncoder())] == ["one", "two"]


def test_an_item_shows_all_segments_of_its_prompt():
    row = replace(
        example("b?", "x", 1, group="g"), segments=(Segment("system", "Be brief."), Segment("user", "b?"))
    )
    (question,) = questions_from([row], LetterEncoder())
    assert question.item.prompt == "Be brief.\n\nb?"
    assert (question.item.group, question.item.source) == ("g", "rows.jsonl")


def test_a_shared_prompt_in_two_groups_is_an_error_with_both_places():
    rows = [example("a?", "x", 1, group="g"), example("a?", "y", 7, group="h")]
    with pytest.raises(
        DataError, match=r"rows.jsonl:7: has the same prompt as rows.jsonl:1 but .*'h' instead of 'g'"
    ):
        questions_from(rows, LetterEncoder())


def test_no_examples_is_an_error():
    with pytest.raises(DataError, match="no examples to evaluate on"):
        questions_from([], LetterEncoder())


def test_answers_carry_text_length_and_the_summed_likelihood_of_all_references():
    questions = questions_from(
        [example("a?", "x", 1), example("b?", "y", 2), example("a?", "zz", 3)], LetterEncoder()
    )
    asked = []

    def generate(prompts):
        asked.extend(prompts)
        return [Said((1, 2), "one", "stop"), Said((3,), "two", "length")]

    answers = ask(
        questions,
        generate,
        lambda sequences: [(len(s.completion_ids) * 1.5, len(s.completion_ids)) for s in sequences],
    )
    assert asked == [(97, 63), (98, 63)]
    assert [(a.text, a.tokens, a.finished, a.nll, a.nll_tokens) for a in answers] == [
        ("one", 2, "stop", 4.5, 3),
        ("two", 1, "length", 1.5, 1),
    ]


def test_without_likelihoods_answers_have_none():
    questions = questions_from([example("a?", "x", 1)], LetterEncoder())
    (answer,) = ask(questions, lambda prompts: [Said((1,), "one", "stop")])
    assert (answer.nll, answer.nll_tokens) == (None, 0)


@pytest.mark.parametrize(
    "generated", ["3", "<think></think>3", "<think>1 and 2 is 3</think>3", "<think>\n</think>\n\n3"]
)
def test_what_the_template_adds_and_what_a_model_thinks_is_no_part_of_an_answer(generated):
    questions = questions_from([example("1 + 2", "3", 1)], LetterEncoder())
    (answer,) = ask(questions, lambda prompts: [Said((1,) * 9, generated, "stop")])
    assert (answer.text, answer.tokens) == ("3", 9)


def test_a_references_reasoning_and_its_own_end_token_are_no_part_of_it_either():
    rows = [example("1 + 2", "<think>so</think>3", 1), example("1 + 2", "three$", 2)]
    (question,) = questions_from(rows, LetterEncoder())
    assert question.item.references == ("3", "three")


class DocumentEncoder(LetterEncoder):
    def sequences(self, example, *, longest=None):
        tokens, step = tuple(map(ord, example.completion)), longest - 1
        return tuple(
            Encoded(
                tokens[start : start + 1], tokens[start + 1 : start + 1 + step], example.source, example.row
            )
            for start in range(0, len(tokens) - 1, step)
        )


def test_references_of_a_row_take_the_completions_place():
    (question,) = questions_from([example("a?", "x", 1, references=("y", "zz"))], LetterEncoder())
    assert question.item.references == ("y", "zz")
    assert [encoded.completion_ids for encoded in question.encoded] == [(121,), (122, 122)]


def test_a_document_is_read_in_parts_and_nothing_is_asked():
    rows = [Example((), "abcde", "x", 1), Example((), "abcde", "x", 2)]
    questions = questions_from(rows, DocumentEncoder(), longest=3)
    assert [question.item.row for question in questions] == [1, 2]
    assert [encoded.input_ids for encoded in questions[0].encoded] == [(97, 98, 99), (99, 100, 101)]
    answers = ask(questions, lambda prompts: 1 / 0, lambda sequences: [(1.0, 2) for _ in sequences])
    assert [(answer.text, answer.tokens, answer.nll, answer.nll_tokens) for answer in answers] == [
        ("", 0, 2.0, 4)
    ] * 2


def test_documents_and_questions_may_be_mixed_and_answers_stay_in_order():
    rows = [example("a?", "x", 1), Example((), "abc", "x", 2), example("b?", "y", 3)]
    questions = questions_from(rows, DocumentEncoder(), longest=9)
    answers = ask(questions, lambda prompts: [Said((1,), chr(prompt[0]), "stop") for prompt in prompts])
    assert [answer.text for answer in answers] == ["a", "", "b"]


def test_each_answer_of_a_conversation_is_asked_for_in_one_group():
    segments = (Segment("user", "a?"), Segment("assistant", "x"), Segment("user", "b?"))
    conversation = Example(segments, "y", "rows.jsonl", 4, earlier=(1,), references=("z",))
    first, second = each_turn([conversation])
    assert (first.segments, first.completion, first.references) == (segments[:1], "x", ())
    assert (second.segments, second.completion, second.references) == (segments, "y", ("z",))
    assert first.group == second.group == "rows.jsonl:4"
    assert each_turn([example("a?", "x", 1)]) == (example("a?", "x", 1),)
