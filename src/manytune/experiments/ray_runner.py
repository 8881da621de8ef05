"""Trials on Ray: the same trainings, placed by Ray on this machine or on a cluster that it is connected to.

Workers leave their records on the disk, so on a cluster the experiment's directory, its rows and its base must be on a
file system that all machines see under the same path, and that has locks.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manytune.errors import RunError
from manytune.experiments.failures import forget_failure, keep_failure
from manytune.experiments.ray_connection import Head, HeadLostError, start_ray
from manytune.experiments.ray_resources import Node, Share, share_of
from manytune.experiments.ray_trials import RayTrials
from manytune.experiments.ray_worker import RayWorker
from manytune.experiments.runner import KEPT, failed, is_done, write_work
from manytune.experiments.trials import Phase, Trial
from manytune.experiments.workspace import Workspace
from manytune.extras import install_command


@dataclass(frozen=True)
class OnRay:
    """Ray's actors, each with a base of its own and, where the cluster has them, a GPU of its own.

    Attributes:
        workers: How many run at once; None for as many as the cluster has room for.
        cpus: Cores that each gets; None for its part of a machine's.
        gpus: The part of one GPU that each gets; None for a whole one where there are any.
    """

    workers: int | None = None
    cpus: int | None = None
    gpus: float | None = None

    def run(self, workspace: Workspace, phase: Phase, trials: Sequence[Trial]) -> None:
        """See `Runner`.

        A trial whose worker is lost is tried again twice. One that fails otherwise isn't, and the others go on.

        Raises:
            RunError: Ray isn't installed or can't be reached, a trial fits on none of its machines, or a trial failed.
        """
        missing = [trial for trial in trials if not is_done(workspace, phase, trial)]
        if not missing:
            return
        if importlib.util.find_spec("ray") is None:
            raise RunError(f"--on ray needs the package ray. Run: {install_command('cluster')}")
        directory, say = workspace.experiment.directory, workspace.reporter.line
        work = write_work(workspace, phase, missing).resolve()
        on_cpu = workspace.experiment.recipe.training.device == "cpu"
        with _connected() as ray:
            share = share_of(
                _nodes(ray),
                len(missing),
                workers=self.workers,
                cpus=self.cpus,
                gpus=self.gpus,
                on_cpu=on_cpu,
            )
            say(f"{len(missing)} trainings on Ray, {share.workers} at once with {share}")
            found = RayTrials(
                lambda: start_worker(ray, share, work),
                share.workers,
                [trial.name for trial in missing],
                say,
                Head(ray.get_runtime_context().gcs_address).require,
            )
            try:
                found.run()
            except RunError as error:
                raise type(error)(f"Ray: {error} {KEPT}") from error
            except ray.exceptions.RayTaskError:  # a defect, which keeps its traceback
                raise
            except ray.exceptions.RayError as error:
                raise RunError(f"Ray ended before its work: {error} {KEPT}") from error
        for trial in missing:
            forget_failure(directory, trial.name)
        for name, failure in found.failed.items():
            keep_failure(directory, name, failure)
        if found.failed:
            raise failed(found.failed, len(missing))


def start_worker(ray: Any, share: Share, work: Path) -> Any:
    """A worker, which Ray starts as soon as a machine has room for it."""
    actor = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus)(RayWorker)
    return actor.remote(str(work), str(Path.cwd()), gpu=share.gpus > 0)


def _nodes(ray: Any) -> list[Node]:
    found = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return [Node(one.get("CPU", 0.0), one.get("GPU", 0.0)) for one in found]


@contextmanager
def _connected() -> Iterator[Any]:
    """Ray's module. One that isn't running yet is stopped again."""
    import ray

    started_here = not ray.is_initialized()
    if started_here:
        try:
            start_ray(log_to_driver=False)
        except RunError as error:
            raise RunError(f"{error} {KEPT}") from error
    try:
        yield ray
    except HeadLostError:
        started_here = False  # to say goodbye it would be waited for
        raise
    finally:
        if started_here:
            ray.shutdown()
