"""torch's random number generators on several processes: dropout draws other masks on each.

The first process draws what one process alone would. Masks belong to rows, and on another number of processes rows are
with others, so with dropout no number of processes draws what another one does.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from manytune.training.distributed.processes import Processes


def own_stream(processes: Processes, *, seed: int, step: int = 0) -> None:
    """Let every process but the first draw other numbers than the first.

    Args:
        processes: Those that train together.
        seed: The training's.
        step: Optimizer steps done.

    Mutates: torch's generators of this process, unless it is the first.
    """
    if not processes.is_first:
        drawn = np.random.SeedSequence([seed, step, processes.rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(drawn[0]))


def generator_states(processes: Processes) -> dict[str, Tensor]:
    """The states of every process's generators; each process calls it."""
    states = {"cpu": torch.get_rng_state()}
    for index in range(torch.cuda.device_count()):
        states[f"cuda-{index}"] = torch.cuda.get_rng_state(index)
    if processes.count > 1:
        own = {"cpu": states["cpu"]}
        if processes.device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(processes.device)
        for kind, state in own.items():
            for rank, other in enumerate(processes.gather(state)[1:], start=1):
                states[f"rank-{rank}/{kind}"] = other
    return states


def restore_generators(states: Mapping[str, Tensor], processes: Processes, *, seed: int, step: int) -> None:
    """Put a process's generators back; one that wasn't there before draws numbers of its own.

    Args:
        states: As `generator_states` gave them.
        processes: Those that train together now.
        seed: The training's.
        step: Optimizer steps done.
    """
    if processes.is_first:
        torch.set_rng_state(states["cpu"])
        for index in range(torch.cuda.device_count()):
            if f"cuda-{index}" in states:
                torch.cuda.set_rng_state(states[f"cuda-{index}"], index)
        return
    own = f"rank-{processes.rank}"
    if f"{own}/cpu" not in states:
        own_stream(processes, seed=seed, step=step)
        return
    torch.set_rng_state(states[f"{own}/cpu"])
    if f"{own}/cuda" in states and processes.device.type == "cuda":
        torch.cuda.set_rng_state(states[f"{own}/cuda"], processes.device)
