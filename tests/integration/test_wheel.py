"""The wheel has all that the program needs; `make fresh` installs it into an environment of its own and uses it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content."""
    wheels = pytest.importorskip("hatchling.builders.wheel", reason="pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("wheel")
    (wheel,) = wheels.WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_every_file_of_the_package_is_in_the_wheel_and_nothing_else(unpacked: Path) -> None:
    def files(folder: Path) -> set[str]:
        found = (path for path in (folder / "manytune").rglob("*") if path.is_file())
        return {str(path.relative_to(folder)) for path in found if "__pycache__" not in path.parts}

    assert files(unpacked) == files(SOURCES)
    suffixes = {Path(name).suffix for name in files(unpacked)}
    assert suffixes >= {
        ".py",
        ".html",
        ".j2",
        ".js",
        ".jsonl",
        ".cpp",
    }  # pages, templates, questions, kernels


def test_the_wheel_says_what_it_needs_and_nothing_of_where_it_was_made(unpacked: Path) -> None:
    (information,) = unpacked.glob("*.dist-info")
    text = (information / "METADATA").read_text(encoding="utf-8")
    metadata = Parser().parsestr(text)
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"serve", "quant", "track"} <= set(metadata.get_all("Provides-Extra") or ())
    assert any("torch" in needed for needed in metadata.get_all("Requires-Dist") or ())
    assert str(ROOT) not in text and "file:" not in text
    assert "manytune = manytune.cli.main:main" in (information / "entry_points.txt").read_text()
    assert (information / "licenses" / "LICENSE").is_file()


def test_the_program_starts_from_the_wheel_alone(unpacked: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "COLUMNS": "80"}
    code = "import manytune, manytune.cli.main as m; print(manytune.__file__, flush=True); m.main()"
    command = [sys.executable, "-P", "-c", code, "--help"]
    ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(ran.stdout.splitlines()[0]).is_relative_to(unpacked)
    assert "Usage: " in ran.stdout and "serve" in ran.stdout
