"""sbatch's options as lines of a script, and those that can't be given."""

import pytest

from manytune.errors import RunError
from manytune.experiments.slurm.directives import asks_for_gpus, directives, ranges


def lines(options="", **asked):
    found = directives(options, name="manytune-run", log="/runs/a b/%j.log", directory="/here", **asked)
    assert all(line.startswith("#SBATCH ") for line in found)
    return [line.removeprefix("#SBATCH ") for line in found]


def test_a_job_goes_back_to_the_queue_and_is_warned_of_its_end():
    assert lines() == [
        "--job-name=manytune-run",
        "--chdir=/here",
        "--output='/runs/a b/%j.log'",
        "--open-mode=append",
        "--requeue",
        "--signal=B:USR1@90",
    ]


@pytest.mark.parametrize(
    ("options", "asked", "expected"),
    [
        ("--partition=gpu --time 4:00:00", {}, ["--partition=gpu", "--time 4:00:00"]),
        ("-p gpu -n1 --exclusive", {}, ["-p gpu", "-n1", "--exclusive"]),
        ("--comment 'two words'", {}, ["--comment 'two words'"]),
        ("", {"gpus": 1.0, "cpus": 4}, ["--cpus-per-task=4", "--gres=gpu:1"]),
        ("--gres=shard:2", {"cpus": 4}, ["--cpus-per-task=4", "--gres=shard:2"]),
    ],
)
def test_options_are_one_a_line_with_their_values(options, asked, expected):
    assert lines(options, **asked)[6:] == expected


def test_the_users_options_take_the_place_of_those_that_are_set():
    found = lines("--job-name=mine --no-requeue --signal=B:USR1@300")
    assert [line for line in found if "name" in line or "requeue" in line or "signal" in line] == [
        "--job-name=mine",
        "--no-requeue",
        "--signal=B:USR1@300",
    ]


@pytest.mark.parametrize(
    ("options", "asked", "message"),
    [
        ("--array=0-3", {}, "--array is set by manytune: the trials are its tasks. Leave it out."),
        ("-o log", {}, "-o is set by manytune: the logs are next to the scripts."),
        ("--dependency=afterok:1", {}, "--dependency is set by manytune"),
        ("gpu", {}, "expected options of sbatch, such as .* found 'gpu'"),
        ("--comment 'open", {}, "can't be read as options: No closing quotation"),
        ("", {"gpus": 0.5}, "--gpus-per-trial 0.5: Slurm gives out whole GPUs"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(options, asked, message):
    with pytest.raises(RunError, match=message):
        lines(options, **asked)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--gres=gpu:a100:1", True),
        ("--gpus-per-task=1", True),
        ("-G 1", True),
        ("--partition=gpu", False),
        ("--time=1:00:00", False),
        ("", False),
    ],
)
def test_whether_a_gpu_is_asked_for(options, expected):
    assert asks_for_gpus(options) is expected


@pytest.mark.parametrize(
    ("places", "expected"), [((0,), "0"), ((0, 1, 2), "0-2"), ((0, 2, 3, 4, 7), "0,2-4,7"), ((5, 6), "5-6")]
)
def test_places_are_written_as_ranges(places, expected):
    assert ranges(places) == expected
