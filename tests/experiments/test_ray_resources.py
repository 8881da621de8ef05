"""What a trial gets of a cluster: GPUs first, then its part of the cores; and what fits nowhere."""

import pytest

from manytune.errors import RunError
from manytune.experiments.ray_resources import Node, Share, share_of

GPUS = (Node(cpus=64, gpus=8), Node(cpus=32, gpus=4), Node(cpus=16))


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        # A GPU each, and an eighth of the 64 cores.
        (GPUS, {}, Share(cpus=8, gpus=1, workers=12)),
        (GPUS, {"workers": 3}, Share(cpus=8, gpus=1, workers=3)),
        # Two on each GPU; three where two halves of a fifth would be left over.
        (GPUS, {"gpus": 0.5}, Share(cpus=4, gpus=0.5, workers=24)),
        ((Node(16, 1),), {"gpus": 0.3}, Share(cpus=5, gpus=0.3, workers=3)),
        # One machine has cores for five of its eight GPUs.
        (GPUS, {"cpus": 12}, Share(cpus=12, gpus=1, workers=7)),
        # Training on the CPU takes no GPU: one a machine, with all cores that the smallest has.
        (GPUS, {"on_cpu": True}, Share(cpus=16, gpus=0, workers=7)),
        (GPUS, {"gpus": 0, "cpus": 4}, Share(cpus=4, gpus=0, workers=28)),
        # Without GPUs as many cores as leave room for so many workers.
        ((Node(2),), {"workers": 2}, Share(cpus=1, gpus=0, workers=2)),
        ((Node(8), Node(8)), {"workers": 3}, Share(cpus=4, gpus=0, workers=3)),
        ((Node(8), Node(8)), {}, Share(cpus=8, gpus=0, workers=2)),
        # More than there is room for wait; a head without cores counts for nothing.
        ((Node(0), Node(2)), {"workers": 5}, Share(cpus=1, gpus=0, workers=5)),
    ],
)
def test_a_trial_gets_its_part_of_the_cluster(nodes, asked, expected):
    assert share_of(nodes, 100, **asked) == expected


def test_there_are_no_more_workers_than_trials():
    assert share_of(GPUS, 2).workers == 2


@pytest.mark.parametrize("asked", [{"gpus": 1.0}, {"cpus": 65}, {"gpus": 0.5, "cpus": 3}])
def test_what_fits_on_no_machine_is_refused_instead_of_waited_for(asked):
    with pytest.raises(RunError, match=r"no machine of the Ray cluster has both .*0 GPUs and 2 cores"):
        share_of((Node(2),), 1, **asked)
