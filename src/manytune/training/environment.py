"""What a run runs with: releases, processor, threads, device. Its `environment.json`."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from manytune import __version__
from manytune.training.distributed.processes import ALONE, Processes
from manytune.training.distributed.sharding import shards
from manytune.training.recipe import TrainingRecipe

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "safetensors", "tokenizers", "numpy")


def environment(settings: TrainingRecipe, *, processes: Processes = ALONE) -> dict[str, Any]:
    """Describe this process and machine, ready for JSON.

    Args:
        settings: The recipe's training section.
        processes: Those that train together.
    """
    cuda = torch.cuda.is_available() and settings.device != "cpu"
    return {
        "started": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "manytune": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "processes": processes.count,
        "sharded": shards(settings, processes),
        "threads": torch.get_num_threads(),
        "dtype": settings.dtype,
        "activations": settings.activations,
        "tf32": settings.tf32,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "packages": {name: version_of(name) for name in _PACKAGES},
    }


@cache
def version_of(package: str) -> str:
    """The release of an installed package, read once a process: that is a file of headers each time."""
    return metadata.version(package)


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
