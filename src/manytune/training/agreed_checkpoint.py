"""The checkpoint that all processes continue from: the first one chooses it, and the others must see the same files."""

from __future__ import annotations

from pathlib import Path

import torch

from manytune.errors import RunError
from manytune.training.distributed.processes import Processes
from manytune.training.resume import Checkpoint, digest_of_checkpoint, read_checkpoint

_ABSENT, _ANOTHER, _SAME = range(3)


def agreed_checkpoint(found: Checkpoint | None, directory: Path, processes: Processes) -> Checkpoint | None:
    """What this process continues from. Each calls it, and if one can't, all of them end.

    Args:
        found: The first process's choice; None in the others, or if there is nothing to continue from.
        directory: Where the run keeps its checkpoints.
        processes: Those that train together.

    Raises:
        RunError: A process doesn't see the checkpoint that the first one continues from: on several machines their
            directories may not be the same.
        DamagedError: A file of it differs from what was written.
    """
    said = processes.from_first(
        "" if found is None else f"{found.path.name} {digest_of_checkpoint(found.path)}"
    )
    if not said:
        return None
    name, digest = said.split()
    path = directory / name
    own = digest_of_checkpoint(path)
    state = _SAME if own == digest else _ABSENT if own is None else _ANOTHER
    for rank, others in enumerate(processes.gather(torch.tensor([state]))):
        if others != _SAME:
            what = "has another checkpoint in" if others == _ANOTHER else "doesn't see"
            raise RunError(
                f"process {rank} of {processes.count} {what} {path.absolute()}, from which process 0 continues. To "
                "resume, all machines must see one run directory, as on a shared file system, or have copies of its "
                "checkpoints in the same place."
            )
    return found if processes.is_first else read_checkpoint(path)
