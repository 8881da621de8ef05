"""Runs that `manytune train`'s code made, once for all tests of commands that ask them; logs as they were before."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.opposites import PAIRS, WORDS, rows
from tests.word_base import save_word_base, write_nothing_between_tokens

from manytune.training.recipe import recipe_from
from manytune.training.run import run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base, rows, and two runs: one that learned every opposite, one that learned little."""
    folder = tmp_path_factory.mktemp("trained")
    save_word_base(folder / "base", WORDS)
    write_nothing_between_tokens(folder / "base")
    flipped = [(b, a) for a, b in PAIRS]
    (folder / "train.jsonl").write_text(rows(*PAIRS, *flipped))
    (folder / "test.jsonl").write_text(rows(*PAIRS, *flipped))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, steps, seed in (("good", 60, 0), ("poor", 1, 1)):
            run(
                recipe_from(
                    {
                        "base": "base",
                        "data": {
                            "train": "train.jsonl",
                            "validation": None,
                            "test": "test.jsonl",
                            "prompt": "Opposite of {{ word }} :",
                            "completion": "{{ opposite }}",
                        },
                        "method": {"name": "lora", "r": 8, "target_modules": "all-linear"},
                        "training": {
                            "max_steps": steps,
                            "learning_rate": 0.01,
                            "warmup": 0.0,
                            "seed": seed,
                            "device": "cpu",
                        },
                        "output": f"runs/{name}",
                    }
                )
            )
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in."""
    copy = tmp_path / "work"
    shutil.copytree(trained, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("COLUMNS", "60")
    return copy


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """What the command sets up writes to the runner's stderr, which is closed when it ends."""
    loggers = [logging.getLogger(name) for name in ("manytune", "uvicorn", "uvicorn.access")]
    before = [(one, one.handlers[:], one.level, one.propagate, one.disabled) for one in loggers]
    yield
    for one, handlers, level, propagate, disabled in before:
        one.handlers[:], one.propagate, one.disabled = handlers, propagate, disabled
        one.setLevel(level)
