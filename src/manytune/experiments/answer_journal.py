"""Answers on disk as they come, so that none is asked for twice.

A line an answer, in the form that `manytune evaluate --answers` reads, flushed to disk before the next one is taken. A
line that a crash cut is dropped, and its answer asked for again.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from manytune.atomic import explained, flush_directory, require_file
from manytune.data.templates import Example
from manytune.errors import DataError
from manytune.evaluation.results import Answer


class AnswerJournal:
    """The answers of one model that are on disk.

    Args:
        path: The file; made with the first answer. Its directory must exist.

    Attributes:
        path: The file.
        answers: By the digest of the request that they answer.

    Raises:
        DataError: The file is something else, or can't be read.
        WriteError: It is a directory or a device.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Answer] = {}
        require_file(path)
        if not path.exists():
            return
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"can't be read: {error.strerror}", where=str(path)) from error
        whole, _, cut = content.rpartition(b"\n")
        for number, line in enumerate(whole.splitlines(), start=1):
            self._take(line, number)
        if cut:
            with path.open("r+b") as file:
                file.truncate(len(content) - len(cut))

    def _take(self, line: bytes, number: int) -> None:
        try:
            row = json.loads(line)
            key, answer = row["request"], Answer(row["answer"], row["tokens"], row["finished"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                "isn't a recorded answer; give another file with --record", where=f"{self.path}:{number}"
            ) from error
        self.answers[key] = answer

    def keep(self, key: str, asked: Example, model: str, answer: Answer) -> None:
        """Record an answer; when this returns it is on disk.

        Raises:
            WriteError: The disk is full or read-only, or permission is missing.
        """
        row: dict[str, Any] = {
            "source": asked.source,
            "row": asked.row,
            "prompt": "\n\n".join(segment.text for segment in asked.segments),
            "answer": answer.text,
            "tokens": answer.tokens,
            "finished": answer.finished,
            "model": model,
            "request": key,
        }
        is_new = not self.path.exists()
        with explained(self.path):
            with self.path.open("ab") as file:
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                flush_directory(self.path.parent)
        self.answers[key] = answer


def body_digest(address: str, body: dict[str, Any]) -> str:
    """Identifies a request: where it goes, and everything that is sent."""
    return hashlib.sha256(f"{address}\n{json.dumps(body, sort_keys=True)}".encode()).hexdigest()[:32]
