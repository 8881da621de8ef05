import dataclasses
import json

import pytest
from tests.evaluation import invented

from manytune.errors import DataError
from manytune.evaluation.results import read_evaluation, write_evaluation


def test_an_evaluation_survives_the_trip_to_disk_and_back(tmp_path):
    evaluation = invented.evaluation()
    write_evaluation(evaluation, tmp_path / "scores.json")
    assert read_evaluation(tmp_path / "scores.json") == evaluation


def test_floats_survive_to_the_last_bit(tmp_path):
    evaluation = invented.evaluation(2)
    odd = dataclasses.replace(evaluation.results[0].scores[0], value=0.1 + 0.2)
    result = dataclasses.replace(evaluation.results[0], scores=(odd,))
    evaluation = dataclasses.replace(evaluation, results=(result,), comparisons=())
    write_evaluation(evaluation, tmp_path / "scores.json")
    assert read_evaluation(tmp_path / "scores.json").results[0].scores[0].value == 0.1 + 0.2


def test_scores_results_and_comparisons_are_found_by_name():
    evaluation = invented.evaluation(2)
    assert evaluation.result("lora").score("bleu").metric == "bleu"
    assert evaluation.comparison("lora", "chrf").baseline == "base"
    for wrong in (
        lambda: evaluation.result("nobody"),
        lambda: evaluation.result("lora").score("meteor"),
        lambda: evaluation.comparison("base", "chrf"),
    ):
        with pytest.raises(KeyError):
            wrong()


def changed(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(format=1), "expected an evaluation of format 2, found format 1; run"),
        (lambda record: record.pop("format"), "expected an evaluation of format 2, found format None"),
        (lambda record: record.pop("items"), "not an evaluation: items: Field required"),
        (lambda record: record.update(mood="good"), "not an evaluation: mood: "),
        (
            lambda record: record["results"][1]["scores"][0].update(value="high"),
            "not an evaluation: results.1.scores.0.value: ",
        ),
    ],
)
def test_a_damaged_record_is_refused_with_the_place(tmp_path, change, message):
    path = tmp_path / "scores.json"
    write_evaluation(invented.evaluation(2), path)
    changed(path, change)
    with pytest.raises(DataError, match=message) as caught:
        read_evaluation(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_what_is_no_json_or_absent_is_refused_with_the_file(tmp_path):
    path = tmp_path / "scores.json"
    with pytest.raises(DataError, match=r"scores\.json: can't be read: No such file"):
        read_evaluation(path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"scores\.json: expected JSON: "):
        read_evaluation(path)
