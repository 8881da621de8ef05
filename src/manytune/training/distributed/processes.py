"""The processes that train together, and what they tell one another.

accelerate joins them to a process group of torch: gloo on CPUs, NCCL on GPUs, one device a process. Each has the whole
model and reads the whole data, so that little has to be said: gradients, counts, and what the first one decides.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from manytune.errors import RunError
from manytune.training.distributed.launchers import WAYS, Launched, launched

# The others wait while the first one scores answers or writes; a process that died is noticed by the launcher.
_PATIENCE = datetime.timedelta(hours=6)
_FAILED = "manytune/failed"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: Its number, from 0. The first one owns the run directory.
        count: How many there are.
        device: Where tensors are while they are exchanged.
        by_manytune: Whether `--processes` started them.
        shards: Whether the launcher was asked for FSDP2, whatever the recipe says.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = _CPU
    by_manytune: bool = False
    shards: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this one owns the run directory and speaks for all."""
        return self.rank == 0

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Sum over the processes, number by number, in float64; whole numbers up to 2⁵³ are exact."""
        return self._reduced(numbers, distributed.ReduceOp.SUM)

    def largest(self, number: float) -> float:
        """The largest over the processes."""
        return self._reduced([number], distributed.ReduceOp.MAX)[0]

    def _reduced(self, numbers: Sequence[float], how: distributed.ReduceOp.RedOpType) -> list[float]:
        if self.count == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        distributed.all_reduce(values, how)
        return values.tolist()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Each process's tensor, which has the same shape and dtype in all, on the CPU."""
        if self.count == 1:
            return [tensor]
        own = tensor.to(self.device).contiguous()
        found = [torch.empty_like(own) for _ in range(self.count)]
        distributed.all_gather(found, own)
        return [one.cpu() for one in found]

    def from_first(self, text: str) -> str:
        """The first process's text, for which the others wait."""
        if self.count == 1:
            return text
        content = text.encode()
        length = torch.tensor([len(content)], device=self.device)
        distributed.broadcast(length, src=0)
        values = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.is_first:
            values = torch.tensor(list(content), dtype=torch.uint8, device=self.device)
        if len(values):
            distributed.broadcast(values, src=0)
        return bytes(values.tolist()).decode()

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Give each process the first one's values.

        Mutates: the tensors.
        """
        if self.count > 1:
            for tensor in tensors:
                own = tensor.detach()
                shared = own.to(self.device)
                distributed.broadcast(shared, src=0)
                if shared is not own:
                    own.copy_(shared)

    def wait(self) -> None:
        """Wait until all have come here."""
        self.sum([0.0])

    def fails_first(self) -> bool:
        """Whether no other process of this machine has failed before, so that this one's error is the one to say."""
        if self.count == 1:
            return True
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        machine = os.environ.get("GROUP_RANK", "0")  # torchrun's number for it
        try:
            store = distributed.TCPStore(  # type: ignore[attr-defined]  # torch documents it
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                is_master=False,
                timeout=datetime.timedelta(seconds=10),
            )
            return bool(store.add(f"{_FAILED}/{attempt}/{machine}", 1) == 1)
        except RuntimeError:  # it ended with the process that held it, which has said why
            return self.is_first


ALONE = Processes()


def join(found: Launched | None, *, device: str = "auto") -> Processes:
    """Join the other processes that the launcher started.

    Args:
        found: What the launcher set; None for a process that is alone.
        device: The recipe's `training.device`.

    Raises:
        RunError: There is no GPU for this process, or the others can't be reached.
    """
    if found is None:
        return ALONE
    from accelerate import PartialState

    cpu = device == "cpu" or not torch.cuda.is_available()
    if not cpu:
        check_devices(found.local_rank + 1)
    if not distributed.is_initialized():
        try:
            PartialState(cpu=cpu, timeout=_PATIENCE, **({"backend": "gloo"} if cpu else {}))
        except (RuntimeError, ValueError) as error:
            raise RunError(
                f"process {found.rank} of {found.count} can't reach the others at {os.environ['MASTER_ADDR']}:"
                f"{os.environ['MASTER_PORT']}: {str(error).splitlines()[0]}. Start them by {WAYS}."
            ) from error
    where = _CPU if cpu else torch.device("cuda", found.local_rank)
    return Processes(found.rank, found.count, where, found.by_manytune, found.shards)


def joined(device: str = "auto") -> Processes:
    """The processes that this one trains with, by what the launcher set: this one alone, if there is no launcher."""
    return join(launched(), device=device)


def leave() -> None:
    """End this process's part in the group, if there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def check_devices(processes: int) -> None:
    """Refuse more processes than there are GPUs.

    Raises:
        RunError: Says how many there are.
    """
    there = torch.cuda.device_count()
    if processes > there:
        raise RunError(
            f"each process trains on a GPU of its own, and {processes} were started where torch finds {there}. Start "
            "fewer, or set training.device to cpu."
        )
