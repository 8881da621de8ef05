"""Every option that takes a place to write, with places where nothing can be written: a sentence, and no traceback."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.store.adapters_made import make_adapter
from tests.store.tiny import save_tiny_base
from typer.testing import CliRunner

from manytune.cli.main import build_app
from manytune.store.base import load_base
from manytune.store.store import AdapterStore

_RECIPE = """\
base: base
data: {train: rows.csv, validation: null, test: rows.csv, prompt: "{{ question }}", completion: "{{ answer }}"}
training: {max_steps: 1, device: cpu}
"""

COMMANDS = {
    "init": "init rows.csv --output",
    "keys add": "keys add mine --file",
    "convert": "data convert chat.jsonl --output",
    "report": "evaluate --answers a=answers.jsonl --data rows.csv --prompt {{question}} --completion {{answer}} "
    "--report",
    "record": "evaluate --endpoint http://127.0.0.1:9/v1 --model m --retries 0 --data rows.csv --prompt {{question}} "
    "--completion {{answer}} --record",
    "gguf": "adapters export one --to gguf --output",
}
"""Commands that write a file; the place is put behind them."""
DIRECTORIES = {
    "split": "data split rows.csv --output",
    "peft": "adapters export one --to peft --output",
    "vllm": "adapters export one --to vllm --output",
    "merged": "adapters export one --to merged --output",
    "merge": "adapters merge one --output",
    "store": "adapters add runs/one --store",
    "train": "train recipe.yaml --set=output=",
}
"""Commands that make a directory."""


def _in_the_way(place: str) -> str:
    Path(place).write_text("mine")
    return place


def _loop(place: str) -> str:
    Path(place).symlink_to(place)
    return place


PLACES: dict[str, Callable[[], str]] = {
    "below a file": lambda: f"{_in_the_way('file')}/there",
    "in a loop of links": lambda: f"{_loop('loop')}/there",
    "a loop of links": lambda: _loop("loop"),
    "a name that is too long": lambda: "x" * 300,
    "a path that is too long": lambda: "x/" * 2100 + "x",
    "in /proc": lambda: "/proc/there",
    "a device": lambda: "/dev/full",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    save_tiny_base(folder / "base")
    (folder / "rows.csv").write_text("question,answer\n" + "".join(f"what is {c},{c}\n" for c in "abcd"))
    (folder / "answers.jsonl").write_text("".join(f'{{"answer": "{c}"}}\n' for c in "abcd"))
    turn = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    (folder / "chat.jsonl").write_text(turn)
    (folder / "recipe.yaml").write_text(_RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        base = load_base("base")
        for seed, name in enumerate(("one", "other")):
            made = make_adapter(folder / "runs" / name, base, seed=seed)
            AdapterStore(folder / "adapters").add(made, name=name)
    return folder


@pytest.fixture(autouse=True)
def _in_a_copy(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for entry in world.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "5000")


def _refusal(command: str, place: str) -> str:
    words = command.split(" ")
    words = [*words[:-1], words[-1] + place] if command.endswith("=") else [*words, place]
    before = sorted(os.listdir())
    result = CliRunner().invoke(build_app(), words)
    assert isinstance(result.exception, SystemExit), (words, result.output, result.exception)
    assert result.exit_code in (1, 2), (words, result.output)
    assert sorted(name for name in os.listdir() if not name.startswith("m.answers")) == before
    assert "\nerror: " in f"\n{result.stderr}", (words, result.stderr)
    said = result.stderr[result.stderr.index("error: ") :]
    return said


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", [*COMMANDS, *DIRECTORIES])
def test_a_place_where_nothing_can_be_written(command: str, place: str) -> None:
    said = _refusal({**COMMANDS, **DIRECTORIES}[command], PLACES[place]())
    assert re.search("[.;] ", said), said  # what is wrong, and what to do
    assert len(said) < 9000
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", [".", "folder", "/", ""])
def test_a_directory_where_a_file_is_written(command: str, place: str) -> None:
    Path("folder").mkdir()
    said = _refusal(COMMANDS[command], place)
    assert re.search("[.;] ", said), said


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "gguf"])  # which makes it
def test_a_directory_that_is_not_there(command: str) -> None:
    said = _refusal(COMMANDS[command], "missing/there")
    assert "missing" in said
    assert "irectory" in said
