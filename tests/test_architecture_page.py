"""The architecture page names rooms that exist, and each hop of a fine-tune where the page says it is."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "manytune"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
HOPS = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", PAGE)))
# HF PEFT's module paths, which the page says apart from the table.
OF_PEFT = {"tuners", "utils"}


@pytest.mark.parametrize(("file", "name"), HOPS, ids=[f"{file}:{name}" for file, name in HOPS])
def test_a_hop_is_where_the_page_says_it_is(file: str, name: str) -> None:
    scope: ast.AST = ast.parse((SRC / file).read_text())
    for part in name.split("."):
        found = [
            node
            for node in ast.iter_child_nodes(scope)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == part
        ]
        assert found, f"{file} defines no {name}"
        scope = found[0]


def test_the_page_follows_a_fine_tune_through_most_rooms() -> None:
    rooms = {file.split("/")[0] for file, _ in HOPS}
    assert rooms >= {
        "data",
        "training",
        "methods",
        "model",
        "mixed",
        "store",
        "engine",
        "server",
        "evaluation",
    }


def test_the_table_has_every_room_and_no_other() -> None:
    table = PAGE[PAGE.index("| room |") : PAGE.index("## One fine-tune")]
    named = set(re.findall(r"`([\w/]+)/`", table))
    there = {path.parent.name for path in SRC.glob("*/__init__.py")} - OF_PEFT
    assert {name for name in named if "/" not in name} == there
    assert all((SRC / name).is_dir() for name in named)
    alone = {path.name for path in SRC.glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"`(\w+\.py)`", table)) == alone


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tests/)?[\w/]+\.py)`", PAGE))))
def test_a_file_that_the_page_names_exists(path: str) -> None:
    assert (ROOT / path).is_file() or (SRC / path).is_file() or (ROOT / "benchmarks" / path).is_file()
