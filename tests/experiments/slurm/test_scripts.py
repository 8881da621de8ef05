"""What the script of a job does when it ends, and when its time does. The work is a stand-in."""

import subprocess
import sys

import pytest
from tests.experiments.slurm.fake_slurm import FakeSlurm

from manytune.experiments.slurm import scripts
from manytune.experiments.slurm.scripts import Asked, Job, submit_script, trials_script
from manytune.experiments.trials import Phase


@pytest.fixture
def run(tmp_path, monkeypatch):
    """What sbatch's jobs print whose work is a script."""

    def run(work: str) -> str:
        slurm = FakeSlurm(tmp_path / "slurm")
        python = tmp_path / "python"
        python.write_text(f"#!/bin/bash\n{work}\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        directory = tmp_path / "100% mine"
        (directory / "slurm" / "logs").mkdir(parents=True)
        asked = Asked("--time=0:10", at_once=2, cpus=3)
        (directory / "slurm" / "trials.sbatch").write_text(trials_script(directory, asked))
        submit = directory / "slurm" / "submit.sh"
        submit.write_text(submit_script(directory, [Job("finish", Phase.FINISH, (0, 4))], asked))
        variables = slurm.environment | {"HERE": str(tmp_path)}
        done = subprocess.run(["bash", submit], env=variables, capture_output=True, text=True, check=False)
        assert not done.stderr
        assert (directory / "slurm" / "jobs").read_text() == "100\n"
        assert [call.split()[-3:] for call in slurm.calls] == [["--array=0,4%2", "trials.sbatch", "finish"]]
        status = (tmp_path / "slurm" / "100.status").read_text()
        logs = sorted((directory / "slurm" / "logs").iterdir())
        assert [log.name for log in logs] == ["trials-100_0.log", "trials-100_4.log"]
        return f"{status}\n" + "".join(log.read_text() for log in logs)

    return run


def test_a_task_gets_its_phase_and_its_number_and_its_cores(run, tmp_path):
    assert run('echo "$OMP_NUM_THREADS $*"').splitlines() == [
        "0",
        f"3 -m manytune.experiments.slurm.task {tmp_path}/100% mine finish 0",
        f"3 -m manytune.experiments.slurm.task {tmp_path}/100% mine finish 4",
    ]


def test_a_failed_task_has_its_works_exit_status(run):
    assert run("exit 7").splitlines() == ["7"]


def test_a_task_at_its_time_limit_stops_its_work_and_goes_back_to_the_queue_to_resume(run):
    # The first time Slurm's signal comes while it works; the second time it gets done.
    work = """
    if [ "$SLURM_RESTART_COUNT" = 0 ]; then kill -USR1 $PPID; exec sleep 600; fi
    echo done
    """
    task = ["at its time limit: back to the queue", "done"]
    assert run(work).splitlines() == ["0", *task, *task]


def test_a_task_that_never_gets_done_in_its_time_fails_in_the_end(run, monkeypatch):
    monkeypatch.setattr(scripts, "_REQUEUES", 2)
    found = run("kill -USR1 $PPID; exec sleep 600").splitlines()
    assert found[0] == "1"
    assert found.count("at its time limit: back to the queue") == 4
    assert found[-1].startswith("sent back 2 times: give it more time (--time)")
