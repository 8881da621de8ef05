import json

import pytest

from manytune.errors import DataError
from manytune.evaluation.ranks import Spectrum
from manytune.evaluation.records import GroupLoss, RunRecord, read_record, write_record
from manytune.evaluation.results import Answer, Cost, Curves, LossPoint

RECORD = RunRecord(
    name="LoRA/seed-0",
    system="LoRA",
    method="lora",
    question="ab" * 32,
    answers=(Answer("one", 1, "stop", 0.1 + 0.2, 3),),
    probes={"text": (Answer("", 0, "stop", 2.5, 7),)},
    seed=0,
    learning_rate=3e-4,
    steps=12,
    validation=(GroupLoss(6.0, 4), GroupLoss(3.0, 2)),
    cost=Cost(trainable_params=7, seconds=1.5),
    curves=Curves(training=(LossPoint(1, 2.5),)),
    spectrum=Spectrum(3.4, 2.1, {"q_proj": 3.4}),
    recipe={"method": {"name": "lora"}},
)


def test_a_record_survives_the_trip_to_disk_and_back(tmp_path):
    path = tmp_path / "records" / "LoRA" / "seed-0.json"
    write_record(RECORD, path)
    assert read_record(path) == RECORD


def test_the_validation_loss_is_a_mean_over_tokens():
    assert RECORD.validation_loss == pytest.approx((6.0 + 3.0) / (4 + 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "expected a run's record of format 1, found format 2; remove the file"),
        ({"answers": "none"}, "not a run's record: answers: .*; remove the file"),
        ({"mood": "good"}, "not a run's record: mood: "),
    ],
)
def test_what_is_no_record_of_this_format_is_refused_with_the_file_and_what_to_do(tmp_path, change, message):
    path = tmp_path / "record.json"
    write_record(RECORD, path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message) as caught:
        read_record(path)
    assert str(caught.value).startswith(f"{path}: ")
