"""A training run in a process of its own that tells where it is, and takes its time where it is worth dying."""

from __future__ import annotations

import gc
import os
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from manytune.store.run_log import Report, StepReport
from manytune.training.recipe import load_recipe
from manytune.training.run import run


def slow_run(recipe: Path, sender: Connection, *, resume: bool, delay: float) -> None:
    """Run a recipe, sending "step" after each step, "flush" before each flush to the disk, and "done".

    Args:
        recipe: The recipe's file.
        sender: Receives the words.
        resume: Whether to continue what is there.
        delay: Seconds to wait after each word, so that the killer can act while the run is at that point.
    """
    torch.set_num_threads(1)
    gc.freeze()  # as in tests/conftest.py
    warnings.simplefilter("error")
    flush = os.fsync

    def slow_flush(descriptor: int) -> None:
        sender.send("flush")
        time.sleep(delay)
        flush(descriptor)

    os.fsync = slow_flush  # type: ignore[assignment]

    def report(event: Report) -> None:
        if isinstance(event, StepReport):
            sender.send("step")
            time.sleep(delay)

    run(load_recipe(recipe), resume=resume, report=report)
    sender.send("done")
