"""A real Slurm of one machine: its controller and its daemon over loopback, for the checks that need one.

It takes no privileges and touches nothing outside of its folder. What it leaves out is who may do what: there is one
user, so that it has no munge.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CONFIGURATION = """\
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={daemon_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
# What goes back to the queue waits for so many seconds; by default for two minutes.
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
_PATIENCE = 120.0


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def one_node(folder: Path, *, cores: int = 2) -> Iterator[dict[str, str]]:
    """A running cluster.

    Args:
        folder: Where its configuration, state and logs are; it is made.
        cores: How many the node says it has.

    Yields:
        The environment in which Slurm's commands find it.
    """
    missing = [name for name in ("slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    assert not missing, (
        f"Slurm isn't installed: {', '.join(missing)}. Debian: apt-get install slurmctld slurmd slurm-client"
    )
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().partition(".")[0]
    configuration = folder / "slurm.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            host=host,
            user=getpass.getuser(),
            folder=folder,
            cores=cores,
            controller_port=_free_port(),
            daemon_port=_free_port(),
        )
    )
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name in ("slurmctld", "slurmd"):
            with (folder / f"{name}.log").open("wb") as log:
                started.append(
                    subprocess.Popen(
                        [name, "-D", "-f", configuration],
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                    )
                )
            if name == "slurmctld":
                _until(environment, started, ["scontrol", "ping"], "UP")
        _until(environment, started, ["sinfo", "--noheader", "--format=%t"], "idle")
        yield environment
    finally:
        subprocess.run(["scancel", "--user", getpass.getuser()], env=environment, check=False)
        for process in reversed(started):
            process.terminate()
            process.wait()


def _until(
    environment: dict[str, str], started: list[subprocess.Popen[bytes]], asked: list[str], expected: str
) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        found = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
        if expected in found.stdout:
            return
        folder = Path(environment["SLURM_CONF"]).parent
        logs = "\n".join(log.read_text() for log in folder.glob("*.log"))
        assert all(process.poll() is None for process in started), logs
        assert time.monotonic() < deadline, (asked, found.stdout, found.stderr, logs)
        time.sleep(0.5)
