"""What each trial gets of a Ray cluster, and how many fit into it at once: arithmetic alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from manytune.errors import RunError


@dataclass(frozen=True)
class Node:
    """What a machine of the cluster offers.

    Attributes:
        cpus: Cores.
        gpus: GPUs.
    """

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Share:
    """What trials get.

    Attributes:
        cpus: Cores of each.
        gpus: The part of one GPU that each has; 0 for none.
        workers: Processes that run trials at once.
    """

    cpus: int
    gpus: float
    workers: int

    def __str__(self) -> str:
        gpus = f"{self.gpus:g} GPU" if self.gpus else "no GPU"
        return f"{gpus} and {self.cpus} {'core' if self.cpus == 1 else 'cores'} each"


def share_of(
    nodes: Sequence[Node],
    trials: int,
    *,
    workers: int | None = None,
    cpus: int | None = None,
    gpus: float | None = None,
    on_cpu: bool = False,
) -> Share:
    """What each trial gets, so that as many fit as are asked for.

    Without `gpus` a trial gets a GPU of its own where the cluster has any. Without `cpus` it gets its part of a
    machine's cores; where neither GPUs nor `workers` say how many run at once, that is one a machine.

    Args:
        nodes: The cluster's machines.
        trials: How many there are to run.
        workers: How many run at once; None for as many as fit.
        cpus: Cores of each.
        gpus: The part of a GPU that each gets, at most 1.
        on_cpu: Whether the recipe trains on the CPU.

    Raises:
        RunError: No machine offers what one trial asks for.
    """
    if gpus is None:
        gpus = 1.0 if not on_cpu and any(node.gpus >= 1 for node in nodes) else 0.0
    if cpus is None:
        cpus = _cpus(nodes, workers, gpus)
    room = sum(_slots(node, cpus, gpus) for node in nodes)
    if not room:
        found = "; ".join(
            sorted({f"{node.gpus:g} GPUs and {node.cpus:g} cores" for node in nodes})
        )  # machines are often alike
        raise RunError(
            f"a trial asks for {gpus:g} GPU and {cpus} cores, and no machine of the Ray cluster has both (they have: "
            f"{found}). Ask for less with --gpus-per-trial and --cpus-per-trial, or add machines first."
        )
    return Share(cpus, gpus, min(workers or room, trials))


def _cpus(nodes: Sequence[Node], workers: int | None, gpus: float) -> int:
    """A trial's part of its machine's cores."""
    if gpus:
        return max(1, min((int(node.cpus // _on_gpus(node, gpus)) for node in nodes if node.gpus), default=1))
    sizes = [int(node.cpus) for node in nodes if node.cpus >= 1]
    if workers is None:
        return min(sizes, default=1)
    enough = (
        cpus for cpus in range(max(sizes, default=1), 0, -1) if sum(size // cpus for size in sizes) >= workers
    )
    return next(enough, 1)


def _slots(node: Node, cpus: int, gpus: float) -> int:
    """Trials that a machine has room for."""
    by_cpus = int(node.cpus // cpus)
    return min(by_cpus, _on_gpus(node, gpus)) if gpus else by_cpus


def _on_gpus(node: Node, gpus: float) -> int:
    """Trials that a machine's GPUs have room for; none is on two of them."""
    return int(node.gpus) * int(1 / gpus + 1e-9)
