"""`log.jsonl` of a run directory: one line a step, and one a validation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import TracebackType
from typing import Self

from manytune.atomic import atomic_write
from manytune.training.progress import Report, StepReport

LOG_NAME = "log.jsonl"


class RunLog:
    """`log.jsonl`: a line is on its way to the disk before the next step begins.

    Args:
        path: The file.
        after: Keep what it says up to this step, and continue there; None begins a new file.
    """

    def __init__(self, path: Path, *, after: int | None) -> None:
        kept = _lines_up_to(path, after) if after is not None else []
        atomic_write(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, event: Report) -> None:
        """Append one report."""
        entry = dataclasses.asdict(event)
        if isinstance(event, StepReport):
            entry["tokens_per_second"] = event.tokens_per_second
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()


def _lines_up_to(path: Path, step: int) -> list[str]:
    """The log's lines up to a step; later ones will be written again, and the last may be half a line."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(f"{line}\n")
        except ValueError:
            continue
    return kept
