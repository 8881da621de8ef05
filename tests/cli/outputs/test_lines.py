"""Lines on a terminal: words stay whole, so that a path can be copied from it, and wide characters count as two."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import pytest
from rich.cells import cell_len

from manytune.cli.outputs.lines import print_error, print_line

_PRINTERS = [print_error, print_line, partial(print_line, stderr=True)]
_IDS = ["an error", "a line", "a line on stderr"]


@pytest.fixture(autouse=True)
def _a_terminal_of_40_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")


def _printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    said = capsys.readouterr()
    return re.sub(r"\x1b\[[\d;]*m", "", said.out + said.err).splitlines()


@pytest.mark.parametrize("show", _PRINTERS, ids=_IDS)
def test_a_path_longer_than_the_line_stays_whole(show: Callable[[str], None], capsys) -> None:
    path = "/home/ada/fine-tunes/" + "a-long-name/" * 8 + "recipe.yaml"
    show(f"the recipe is at {path}, and it was read in a second or so")
    lines = _printed(capsys)
    assert f"{path}," in lines
    assert all(cell_len(line) <= 40 for line in lines if path not in line)
    assert " ".join(lines).endswith("and it was read in a second or so")


@pytest.mark.parametrize("show", _PRINTERS, ids=_IDS)
def test_wide_characters_count_as_two(show: Callable[[str], None], capsys) -> None:
    words = ["微調整", "模型", "在中國", "語料上", "訓練完成", "可以使用"] * 3
    show(" ".join(words))
    lines = _printed(capsys)
    assert all(cell_len(line) <= 40 for line in lines)
    assert [word for line in lines for word in line.split() if word != "error:"] == words
    assert max(map(cell_len, lines)) > 30


@pytest.mark.parametrize("show", _PRINTERS, ids=_IDS)
def test_a_text_without_spaces_is_left_to_the_terminal(show: Callable[[str], None], capsys) -> None:
    show("微調整" * 30)
    assert _printed(capsys)[-1] == "微調整" * 30


def test_indentation_and_empty_lines_stay(capsys) -> None:
    print_line("a\n\n  b c")
    assert _printed(capsys) == ["a", "", "  b c"]
