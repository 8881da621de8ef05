"""Processes that train together, forked from one that has paid for the imports."""

from __future__ import annotations

import gc
import os
import socket
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from tests.forkserver import PROCESSES

from manytune.training.distributed.processes import Processes, joined, leave


def together(
    count: int, work: Callable[..., Any], *arguments: Any, a_machine_each: bool = False
) -> list[Any]:
    """Call `work(processes, *arguments)` in so many processes of one group; give what each returned, in their order.

    With `a_machine_each` they are numbered as if each had a machine of its own.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    members, receivers = [], []
    for rank in range(count):
        receiver, sender = PROCESSES.Pipe(duplex=False)
        member = PROCESSES.Process(
            target=_member,
            args=(rank, 0 if a_machine_each else rank, count, port, sender, work, arguments),
            daemon=True,
        )
        member.start()
        sender.close()
        members.append(member)
        receivers.append(receiver)
    try:
        found = [receiver.recv() for receiver in receivers]
        assert not [error for _, error in found if error], "\n".join(error for _, error in found)
    except BaseException:
        for member in members:
            member.kill()
        raise
    finally:
        for member in members:
            member.join()
    return [result for result, _ in found]


def _member(
    rank: int,
    local_rank: int,
    count: int,
    port: int,
    sender: Connection,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(local_rank),
        WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
    gc.freeze()  # as in tests/conftest.py
    warnings.simplefilter("error")
    processes: Processes = joined("cpu")
    try:
        sender.send((work(processes, *arguments), ""))
    except BaseException:
        sender.send((None, f"process {rank}:\n{traceback.format_exc()}"))
        raise
    processes.wait()
    leave()
