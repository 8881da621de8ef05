"""The whole story on a tiny base and a few invented papers."""

import json
import random
import shlex
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from tests.store.tiny import LETTERS, save_tiny_base
from typer.testing import CliRunner

from manytune.cli.main import build_app
from manytune.demo import aclsum, plan, recipes, story, systems
from manytune.demo.machine import Machine
from manytune.errors import RunError
from manytune.evaluation.results import read_evaluation
from manytune.store.adapters import open_adapter
from manytune.training.recipe import load_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A tiny base in place of the embedded one, invented papers in place of ACLSum's, and few steps."""
    directory = tmp_path_factory.mktemp("tiny")
    base = str(save_tiny_base(directory / "base"))
    with pytest.MonkeyPatch.context() as patch:
        for module in (recipes, story, systems):
            patch.setattr(module, "BASE", base)
        patch.setattr(aclsum, "_installed", lambda: invented_papers(directory / "aclsum"))
        patch.setattr(aclsum, "QUESTIONS", {"challenge": "abc", "approach": "bcd", "outcome": "cde"})
        patch.setattr(recipes, "MAX_NEW_TOKENS", 4)
        patch.setattr(systems, "MAX_NEW_TOKENS", 4)
        patch.setattr(story, "measure", lambda: Machine(50.0, 1, "cpu"))
        patch.setattr(plan, "LORA_STEPS", plan.Limits(2, 4, 0.3))
        patch.setattr(plan, "FULL_STEPS", plan.Limits(2, 3, 0.2))
        patch.setattr(plan, "LONG_LORA_STEPS", 5)
        patch.setattr(plan, "LONG_FULL_STEPS", 4)
        yield


def invented_papers(directory: Path) -> Path:
    draw = random.Random(0)

    def words(count: int) -> str:
        return "".join(draw.choice(LETTERS) for _ in range(count))

    directory.mkdir(exist_ok=True)
    for name, count in (("train", 8), ("val", 4), ("test", 7)):
        lines = [
            {
                "id": f"{name}-{number}",
                "title": words(4),
                "summary": {aspect: words(4) for aspect in ("challenge", "approach", "outcome")},
                "sentences": {"abstract": [words(12), words(9)]},
            }
            for number in range(count)
        ]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def run_demo(directory: Path, minutes: float | None = 5.0) -> tuple[story.Finished, str]:
    out = StringIO()
    console = Console(file=out, width=60)
    return story.run_demo(
        directory, minutes=minutes, console=console, started=time.monotonic()
    ), out.getvalue()


#: What a demo gives, what it prints, and its directory.
Demo = tuple[story.Finished, str, Path]


@pytest.fixture(scope="module")
def demo(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """One that is only looked at."""
    directory = tmp_path_factory.mktemp("once") / "demo"
    return *run_demo(directory), directory


def test_it_leaves_a_report_results_two_runs_and_the_rows(demo: Demo) -> None:
    finished, printed, _ = demo
    assert "<html" in finished.report.read_text()
    evaluation = read_evaluation(finished.results)
    assert evaluation == finished.evaluation
    assert [result.name for result in evaluation.results] == ["base", "LoRA", "full"]
    assert len(evaluation.items) == 7 * 3  # every test paper: there was time
    assert [item.task for item in evaluation.items[:3]] == ["challenge", "approach", "outcome"]
    assert [result.cost.trainable_params for result in evaluation.results[1:]] != [None, None]
    assert all(
        result.curves.training and len(result.curves.validation) == 3 for result in evaluation.results[1:]
    )
    for heading in ("1. This machine", "2. LoRA", "3. Full fine-tuning", "4. The same test papers"):
        assert heading in printed
    assert max(map(len, printed.splitlines())) <= 60
    (probe,) = evaluation.forgetting  # there was time for that, too
    assert [result.name for result in probe.evaluation.results] == ["base", "LoRA", "full"]
    assert {found.system for found in evaluation.shares} == {"LoRA", "full"}


def test_the_adapter_is_one_like_any_other_and_its_recipe_can_be_run_again(
    demo: Demo, tmp_path: Path
) -> None:
    finished, _, _ = demo
    scores = {score.metric: score.value for score in finished.evaluation.result("LoRA").scores}
    manifest = open_adapter(finished.lora.adapter).manifest
    assert manifest is not None
    assert {name: manifest.scores[name] for name in scores} == scores
    again = tmp_path / "again"
    arguments = ["train", str(finished.lora.directory / "recipe.yaml"), "--set", f"output={again}"]
    assert CliRunner().invoke(build_app(), arguments).exit_code == 0
    assert (
        load_recipe(again / "recipe.yaml").training
        == load_recipe(finished.lora.directory / "recipe.yaml").training
    )
    weights = "adapter/adapter_model.safetensors"
    assert (again / weights).read_bytes() == (finished.lora.directory / weights).read_bytes()


def test_the_base_answers_as_if_nothing_had_been_trained(demo: Demo) -> None:
    finished, _, directory = demo
    respond = systems.load_systems(finished.lora, finished.lora, device="cpu")
    questions = story.read_questions(directory)[:6]
    before = respond["base"](questions)
    assert respond["LoRA"](questions) == respond["full"](
        questions
    )  # the same adapter, merged and as a layer of its own
    assert respond["base"](questions) == before
    assert tuple(before) == finished.evaluation.result("base").answers[:6]


@pytest.mark.usefixtures("tiny")
def test_a_second_demo_replaces_the_first_and_nothing_else(tmp_path: Path) -> None:
    run_demo(tmp_path / "demo")
    finished, _ = run_demo(tmp_path / "demo", minutes=None)
    assert finished.lora.training.steps == 5
    (tmp_path / "mine" / "lora").mkdir(parents=True)
    (tmp_path / "mine" / "lora" / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match="isn't empty and holds no run"):
        run_demo(tmp_path / "mine")
    assert (tmp_path / "mine" / "lora" / "thesis.txt").read_text() == "precious"
    (tmp_path / "work" / "data").mkdir(parents=True)
    for name in ("report.html", "data/train.jsonl"):
        (tmp_path / "work" / name).write_text("precious")
    with pytest.raises(RunError, match="isn't empty and holds no demo"):
        run_demo(tmp_path / "work")
    for name in ("report.html", "data/train.jsonl"):
        assert (tmp_path / "work" / name).read_text() == "precious"


@pytest.mark.usefixtures("tiny")
def test_the_command_prints_the_table_and_what_to_type_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.argv", ["manytune"])  # however the tests were started
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(build_app(), ["demo", "--minutes", "5"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "ROUGE-1" in result.stdout and "LoRA" in result.stdout
    assert "2. LoRA" in result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 60
    _, _, commands = result.stdout.partition("Next:\n")
    first, *_ = [shlex.split(command) for command in commands.replace("\\\n", "").strip().splitlines()]
    assert first[1:3] == ["generate", "--adapter"]
    few = ["--max-new-tokens", "4"]  # the tiny base has few positions
    assert CliRunner().invoke(build_app(), [*first[1:], *few], catch_exceptions=False).exit_code == 0


@pytest.mark.usefixtures("tiny")
def test_with_json_stdout_is_json_alone(tmp_path: Path) -> None:
    result = CliRunner().invoke(build_app(), ["demo", "--output", str(tmp_path / "demo"), "--json"])
    found = json.loads(result.stdout)
    assert [system["name"] for system in found["results"]] == ["base", "LoRA", "full"]
    assert found["items"] == 21
