"""Which runner the options of `compare` and `sweep` mean, and which of them mean nothing."""

import pytest
import typer

from manytune.cli.experiments import Place, Placement
from manytune.experiments.ray_runner import OnRay
from manytune.experiments.runner import InProcesses, InTurn
from manytune.experiments.slurm.stages import Stages
from manytune.experiments.trials import Phase


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        (Placement(Place.HERE, 2), InProcesses(2)),
        (Placement(Place.RAY), OnRay()),
        (Placement(Place.RAY, 3, gpus=0.5, cpus=2), OnRay(3, cpus=2, gpus=0.5)),
        (Placement(Place.SLURM, stage="search"), Stages(Phase.SEARCH)),
        (Placement(Place.SLURM, stage="report"), Stages(None)),
    ],
)
def test_options_become_a_runner(placement, expected):
    assert placement.runner() == expected and not placement.submits


@pytest.mark.parametrize("workers", [None, 1])
def test_one_training_at_a_time_needs_no_process_of_its_own(workers):
    assert isinstance(Placement(Place.HERE, workers).runner(), InTurn)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on": Place.HERE, "gpus": 0.5}, "is for --on ray and --on slurm"),
        ({"on": Place.HERE, "cpus": 1}, "is for --on ray and --on slurm"),
        ({"on": Place.RAY, "options": "--time=1:00"}, "is for --on slurm"),
        ({"on": Place.RAY, "only_write": True}, "is for --on slurm"),
    ],
)
def test_an_option_that_means_nothing_there_is_wrong_usage(options, message):
    with pytest.raises(typer.BadParameter, match=message):
        Placement(**options)
