"""The examples run as they are, and learn."""

import importlib
import json
import random
import re
import runpy
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tests.word_base import save_word_encoder
from typer.testing import CliRunner

from manytune.cli.main import build_app

EXAMPLES = Path(__file__).parents[1] / "examples"
TRAINED_WITH = ["accelerate_loop.py", "bare_loop.py", "hf_trainer.py", "seq2seq_trainer.py"]


def run_example(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python name` would in the examples' folder, without a process of its own, which imports for seconds."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.filterwarnings("ignore")  # other libraries' own
@pytest.mark.parametrize("name", TRAINED_WITH)
def test_a_manytune_model_trains_with(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(EXAMPLES)
    run_example(name, monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    found = re.search(r"^loss: ([\d.]+) -> ([\d.]+)$", printed, re.MULTILINE)
    assert found is not None, printed
    assert float(found[2]) < 0.8 * float(found[1])
    assert "different" not in printed


def reviews() -> str:
    """Lines of the snippets' file: number, mean rating, text."""
    draw = random.Random(0)
    lines = []
    for number in range(1, 401):
        kind = draw.choice(["good", "bad"])
        text = " ".join([kind, *draw.sample("abcdefgh", 6)])
        lines.append(f"{number}\t{1.5 if kind == 'good' else -1.5}\t{text} {number}")
    return "\n".join([*lines, "401\t0.0\tneither", f"402\t2.0\t{lines[0].split(chr(9))[2]}"])


@pytest.fixture
def sentiment(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("sentiment")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive within an archive, as on PyPI."""
    inner = tmp_path / "hutto_ICWSM_2014.tar.gz"
    outer = tmp_path / "vaderSentiment-3.3.2.tar.gz"
    (tmp_path / "movieReviewSnippets_GroundTruth.txt").write_text(reviews())
    for path, member in ((inner, tmp_path / "movieReviewSnippets_GroundTruth.txt"), (outer, inner)):
        with tarfile.open(path, "w:gz") as packed:
            packed.add(member, arcname=f"folder/{member.name}")
    return outer


@pytest.fixture
def small_bert(tmp_path: Path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", *"abcdefgh"]
    target = tmp_path / "bert"
    save_word_encoder(target, words, initializer_range=0.2)
    return target


def test_reviews_become_rows_with_neighbours_and_no_text_twice(sentiment: Any, archive: Path) -> None:
    rows = sentiment.rows(sentiment.ground_truth(archive))
    assert len(rows) == 400  # neither the one without a sign nor the one that is there twice
    assert all(row["label"] == ("good" if "good" in row["text"] else "bad") for row in rows)
    assert [row["neighbours"] for row in rows[8:11]] == ["0", "1", "1"]
    some = sentiment.some(rows, 100)
    groups = {row["neighbours"] for row in some}
    assert some == [row for row in rows if row["neighbours"] in groups] and 80 <= len(some) <= 120


def test_the_recipe_of_reviews_compares_lora_with_full_fine_tuning(
    archive: Path, small_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare = ["--data", str(archive), "--base", str(small_bert), "--snippets", "200"]
    run_example("sentiment.py", *prepare, monkeypatch=monkeypatch)
    changes = ["compare.seeds=[0]", "training.max_steps=40", "compare.systems.full.learning_rates=2e-3"]
    options = [part for change in changes for part in ("--set", change)]
    found = CliRunner().invoke(
        build_app(), ["compare", str(EXAMPLES / "sentiment.yaml"), *options, "--json"], catch_exceptions=False
    )
    assert found.exit_code == 0, found.output
    results = {result["name"]: result for result in json.loads(found.stdout)["results"]}
    assert list(results) == ["majority class", "full", "lora"]
    assert all(results[name]["scores"][0]["value"] > 0.65 for name in ("full", "lora"))


def test_reviews_that_are_not_there_are_an_error_that_says_where_from(
    sentiment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentiment.subprocess, "run", lambda *_, **__: None)  # as without a network
    with pytest.raises(SystemExit, match=r"Expected vaderSentiment-3.3.2.tar.gz.*from PyPI.*--data FILE"):
        sentiment.ground_truth(tmp_path / "vaderSentiment-3.3.2.tar.gz")
