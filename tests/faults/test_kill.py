"""SIGKILL at random moments: the resumed run must end with the bits of the run that nobody killed."""

from __future__ import annotations

import multiprocessing
import random
import signal
from pathlib import Path

import pytest
import yaml
from tests.faults.slow_run import slow_run
from tests.random_cases import cases
from tests.training.tiny_run import adapter_digest, recipe_content

from manytune.training.recipe import recipe_from
from manytune.training.run import run

MOMENTS = cases(6)
SEED = 20240607

# Each run is a fresh process; the server that they are forked from has paid for the imports once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["manytune.training.run"])


def write_recipe(directory: Path) -> Path:
    """10 steps in 2 epochs of 5, dropout 0.1, two forward passes a step, a checkpoint every second step.

    The best of its validations is kept; which one that is, the run learns before, between and after being killed.
    """
    settings = {"eval_every": 3, "keep": "best", "learning_rate": 0.3}
    content = recipe_content(
        directory, accumulation=2, batch_size=2, epochs=2, checkpoint_every=2, **settings
    )
    (directory / "recipe.yaml").write_text(yaml.safe_dump(content))
    return directory / "recipe.yaml"


def run_in_a_process(recipe: Path, *, resume: bool = False, kill_at: int | None = None) -> list[str]:
    """Run a recipe in another process, and kill it when it has sent that many words; return what it sent."""
    receiver, sender = PROCESSES.Pipe(duplex=False)
    delay = 0.0 if kill_at is None else 0.02
    process = PROCESSES.Process(
        target=slow_run, args=(recipe, sender), kwargs={"resume": resume, "delay": delay}
    )
    process.start()
    sender.close()
    words: list[str] = []
    while len(words) != kill_at:
        try:
            words.append(receiver.recv())
        except EOFError:
            break
    else:
        process.kill()
    process.join()
    receiver.close()
    was_killed = len(words) == kill_at
    assert process.exitcode == (-signal.SIGKILL if was_killed else 0)
    process.close()
    return words


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """The adapter's hash, and the words that a whole run sends."""
    directory = tmp_path_factory.mktemp("whole")
    words = run_in_a_process(write_recipe(directory))
    assert words[-1] == "done"
    return adapter_digest(directory / "run" / "adapter"), words


def test_another_process_ends_with_the_same_bits(
    uninterrupted: tuple[str, list[str]], tmp_path: Path
) -> None:
    content = yaml.safe_load(write_recipe(tmp_path).read_text())
    assert adapter_digest(run(recipe_from(content)).adapter) == uninterrupted[0]


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(MOMENTS))
def test_a_run_killed_at_a_random_moment_resumes_to_the_same_bits(
    attempt: int, uninterrupted: tuple[str, list[str]], tmp_path: Path
) -> None:
    """Odd attempts die while something is being written, even ones anywhere; the resumed run is killed too."""
    expected, words = uninterrupted
    draw = random.Random(SEED + attempt)
    written_recipe = words.index("step")  # a run that has no recipe yet can't be resumed; it is started again
    moments = [
        number
        for number, word in enumerate(words[:-1], start=1)
        if number > written_recipe and (word == "flush" or attempt % 2 == 0)
    ]
    recipe, finished = write_recipe(tmp_path), tmp_path / "run" / "scores.json"

    assert "done" not in run_in_a_process(recipe, kill_at=draw.choice(moments))
    if not finished.exists():
        run_in_a_process(recipe, resume=True, kill_at=draw.randint(1, 12))
    if not finished.exists():
        assert run_in_a_process(recipe, resume=True)[-1] == "done"

    assert adapter_digest(tmp_path / "run" / "adapter") == expected
    assert [path.name for path in (tmp_path / "run").rglob("*") if "manytune-" in path.name] == []


def test_a_run_killed_before_its_recipe_was_written_is_simply_started_again(
    uninterrupted: tuple[str, list[str]], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path)
    run_in_a_process(recipe, kill_at=1)
    assert run_in_a_process(recipe)[-1] == "done"
    assert adapter_digest(tmp_path / "run" / "adapter") == uninterrupted[0]
