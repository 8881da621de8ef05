import json

import pytest

from manytune.data.templates import Example, Segment
from manytune.errors import DataError
from manytune.evaluation.answer_files import items_of, match, read_answers
from manytune.evaluation.answers import by_prompt, items_from
from manytune.evaluation.evaluate import System, evaluate
from manytune.evaluation.metrics import metrics_named
from manytune.evaluation.resampling import Resampling


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Three prompts of four rows, of which the first and the last share theirs."""
    monkeypatch.chdir(tmp_path)
    rows = [("a", "1"), ("b", "2"), ("c", "3"), ("a", "4")]
    written(tmp_path / "rows.jsonl", *({"id": f"n{p}", "q": q, "a": a} for p, (q, a) in enumerate(rows)))
    return by_prompt(
        [Example((Segment("user", q),), a, "rows.jsonl", row) for row, (q, a) in enumerate(rows, start=1)]
    )


def test_answers_are_matched_by_id_whatever_their_order(asked, tmp_path):
    file = written(
        tmp_path / "x.jsonl",
        {"id": "n2", "text": "3", "tokens": 7, "finish_reason": "length"},
        {"id": "n0", "text": "1"},
        {"id": "n1", "text": "2"},
    )
    found = match(read_answers(file), asked)
    assert [one.text for one in found] == ["1", "2", "3"]
    assert (found[2].tokens, found[2].finished) == (7, "length")
    assert [item.references for item in items_from(asked)] == [("1", "4"), ("2",), ("3",)]


@pytest.mark.parametrize("texts", ["123", "1239"])
def test_without_ids_their_order_counts_by_prompt_or_by_row(asked, tmp_path, texts):
    file = written(tmp_path / "x.jsonl", *({"prediction": text} for text in texts))
    assert [one.text for one in match(read_answers(file), asked)] == ["1", "2", "3"]


def test_numbers_of_rows_match_where_rows_have_no_ids(asked, tmp_path):
    written(tmp_path / "rows.jsonl", *({"q": q} for q in "abca"))
    file = written(tmp_path / "x.jsonl", *({"row": row, "answer": str(row)} for row in (3, 1, 2)))
    assert [one.text for one in match(read_answers(file), asked)] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "n0", "text": "1"}, {"id": "n1", "text": "2"}], "no answer to 1 of 3 rows, by `id`: n2"),
        (
            [{"id": f"n{n}", "text": "1"} for n in (0, 1, 2, 2)],
            "x.jsonl:4: answers 'n2' again, as .*x.jsonl:3",
        ),
        (
            [{"id": f"n{n}", "text": "1"} for n in (0, 1, 2, 9)],
            "1 answers to rows that weren't asked, by `id`: n9",
        ),
        ([{"text": "1"}] * 2, "expected 3 answers, one for each prompt, or 4, one for each row; found 2"),
        ([{"text": "1", "answer": "2"}], r"found several \(answer, text\); name it with --answer-field"),
        ([{"said": "1"}], "found none of answer, text, prediction"),
        ([{"text": 5}], "expected text in the field 'text', found 5"),
        ([{"text": "1", "score": 7}], "expected a score from 0 to 1, found 7"),
        (
            [{"text": "1", "prompt": p} for p in "abd"],
            "x.jsonl:3: was given to another prompt than .*:3",
        ),
    ],
)
def test_answers_that_do_not_fit_are_refused(asked, tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        match(read_answers(written(tmp_path / "x.jsonl", *rows)), asked)


def test_answers_to_more_rows_are_fine_where_only_some_were_asked(asked, tmp_path):
    file = written(tmp_path / "x.jsonl", *({"id": f"n{n}", "text": str(n)} for n in range(4)))
    assert [one.text for one in match(read_answers(file), asked[:1], partial=True)] == ["0"]


def test_files_with_references_need_no_data_and_are_compared_by_id(tmp_path):
    one = written(tmp_path / "one.jsonl", *({"id": n, "text": "x", "reference": "x"} for n in range(3)))
    two = written(
        tmp_path / "two.jsonl", *({"id": n, "text": str(n), "references": ["x"]} for n in (2, 0, 1))
    )
    items, (first, second) = items_of([read_answers(one), read_answers(two)])
    assert [item.references for item in items] == [("x",)] * 3
    assert [answer.text for answer in first] == ["x"] * 3
    assert [answer.text for answer in second] == ["0", "1", "2"]
    other = written(tmp_path / "two.jsonl", *({"id": n, "text": "x", "reference": "y"} for n in range(3)))
    with pytest.raises(
        DataError, match=r"two.jsonl:1: has another reference than .*one.jsonl:1: expected \('x',\)"
    ):
        items_of([read_answers(one), read_answers(other)])


def generated(number, text, score, name="strict-match"):
    return {
        "doc_id": number, "doc": {"question": "?"}, "target": f"so it is\n#### {number}", "doc_hash": f"h{number}",
        "arguments": {"gen_args_0": {"arg_0": f"Question {number}", "arg_1": {"until": []}}},
        "resps": [[f"long {text}"]], "filtered_resps": [text], "filter": name, "metrics": ["exact_match"],
        "exact_match": score,
    }  # fmt: skip


def chosen(number, likelihoods, target, score):
    return {
        "doc_id": number, "doc": {}, "target": str(target), "doc_hash": f"h{number}",
        "arguments": {"gen_args_0": {"arg_0": "Is it?", "arg_1": " yes"}},
        "resps": [[[value, "False"]] for value in likelihoods],
        "filtered_resps": [[value, "False"] for value in likelihoods], "filter": "none",
        "metrics": ["acc", "acc_norm"], "acc": score, "acc_norm": 1.0,
    }  # fmt: skip


def test_samples_of_the_harness_are_compared_by_the_harnesss_own_scores(tmp_path):
    files = [
        written(
            tmp_path / f"samples_{n}.jsonl",
            *(generated(k, str(k), float(k % (n + 1) == 0)) for k in range(12)),
        )
        for n in (0, 1)
    ]
    items, answers = items_of([read_answers(file) for file in files])
    assert items[3].prompt == "Question 3" and answers[0][3].text == "3"
    systems = [System(name, "elsewhere", said) for name, said in zip("ab", answers, strict=True)]
    found = evaluate(items, systems, metrics_named(["recorded"]), resampling=Resampling(resamples=200))
    assert [result.score("recorded").value for result in found.results] == [1.0, 0.5]
    assert found.comparison("b", "recorded").verdict == "worse"


def test_of_choices_the_likeliest_one_is_the_answer_as_the_harness_counts_it(tmp_path):
    file = written(
        tmp_path / "s.jsonl", chosen(0, ["-5.5", "-2.0"], 1, 1.0), chosen(1, ["-1.5", "-2.0"], 1, 0.0)
    )
    items, (answers,) = items_of([read_answers(file)])
    right = [answer.text in item.references for answer, item in zip(answers, items, strict=True)]
    assert right == [True, False] == [bool(answer.score) for answer in answers]
    assert [one.answer.score for one in read_answers(file, score="acc_norm")] == [1.0, 1.0]
    with pytest.raises(DataError, match="under 'f1', found None; the row's scores are acc, acc_norm"):
        read_answers(file, score="f1")


def test_one_of_several_filters_has_to_be_named(tmp_path):
    file = written(tmp_path / "s.jsonl", generated(0, "a", 0.0), generated(0, "b", 1.0, "flexible-extract"))
    with pytest.raises(DataError, match="choose one with --answer-field: strict-match, flexible-extract"):
        read_answers(file)
    assert [one.answer.text for one in read_answers(file, field="flexible-extract")] == ["b"]
