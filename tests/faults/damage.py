"""Files that a disk or a hand has damaged."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path


def flip(draw: random.Random, file: Path) -> None:
    """Turn over one to eight bits."""
    content = bytearray(file.read_bytes())
    for _ in range(draw.choice([1, 1, 8]) if content else 0):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def cut(draw: random.Random, file: Path) -> None:
    """Leave a beginning."""
    os.truncate(file, draw.randrange(max(1, file.stat().st_size)))


def zero(draw: random.Random, file: Path) -> None:
    """Leave zeros in place of a part, as a disk does that lost a block."""
    content = bytearray(file.read_bytes())
    start = draw.randrange(max(1, len(content)))
    content[start:] = bytes(len(content) - start)
    file.write_bytes(content)


def take(draw: random.Random, file: Path) -> None:
    """Take it away."""
    del draw
    file.unlink()


DAMAGES: tuple[Callable[[random.Random, Path], None], ...] = (flip, flip, cut, zero, take)


def damaged(root: Path, seed: int, fits: Callable[[Path], bool] = lambda _: True) -> str:
    """Damage one of the files below a directory, drawn with a seed; returns which, and how."""
    draw = random.Random(seed)
    files = sorted(path for path in root.rglob("*") if path.is_file() and fits(path))
    file = draw.choice(files)
    file.chmod(0o644)
    how = draw.choice(DAMAGES)
    how(draw, file)
    return f"{how.__name__} {file}"
