"""Cost and loss curves of a training run, from the files that it left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from manytune.evaluation.results import Cost, Curves, LossPoint

_TENSORS = ".safetensors"


def read_cost(run: Path | None, adapter: Path) -> Cost:
    """What a run's `scores.json` and its adapter's files say; what they don't say is `None`.

    Args:
        run: The run directory; `None` if there is none.
        adapter: The adapter's directory, whose tensor files are counted.
    """
    measured: dict[str, Any] = {}
    scores = run / "scores.json" if run else None
    if scores is not None and scores.is_file():
        measured = json.loads(scores.read_text(encoding="utf-8"))
    return Cost(
        trainable_params=measured.get("trainable_parameters"),
        total_params=measured.get("all_parameters"),
        seconds=measured.get("seconds"),
        peak_memory_bytes=measured.get("peak_memory"),
        adapter_bytes=sum(file.stat().st_size for file in adapter.rglob(f"*{_TENSORS}")),
        tokens_per_second=measured.get("tokens_per_second"),
    )


def read_curves(run: Path) -> Curves:
    """The losses in a run's `log.jsonl`; empty without one."""
    log = run / "log.jsonl"
    training, validation = [], []
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        entry = json.loads(line)
        if "validation_loss" in entry:
            validation.append(LossPoint(entry["step"], entry["validation_loss"]))
        else:
            training.append(LossPoint(entry["step"], entry["loss"]))
    return Curves(tuple(training), tuple(validation))
