"""The script of docs/add-a-method.md does all that it says, outside the package, and its method keeps the contract."""

from __future__ import annotations

import importlib
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.methods import test_registry_contract as contract
from tests.methods.tiny_models import BERT, LLAMA, T5, Family
from tests.store.tiny import save_tiny_base
from tests.test_docs import ROOT, blocks

from manytune.methods import registry

PAGE = ROOT / "docs" / "add-a-method.md"


def save_script(folder: Path) -> Path:
    (script,) = blocks(PAGE, "python")
    path = folder / "rank_one.py"
    path.write_text(script)
    return path


@pytest.mark.filterwarnings("ignore")  # other libraries' own
def test_the_script_attaches_trains_saves_switches_merges_serves_and_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `python rank_one.py BASE` would, without a process of its own, which imports for seconds."""
    monkeypatch.setattr(registry, "_METHODS", registry.methods())
    monkeypatch.chdir(tmp_path)
    base = save_tiny_base(tmp_path / "tiny")
    monkeypatch.setattr(sys, "argv", ["rank_one.py", str(base)])
    runpy.run_path(str(save_script(tmp_path)), run_name="__main__")
    printed = capsys.readouterr().out
    # Two layers of seven projections: 16 -> 16 four times, 16 -> 32 twice and 32 -> 16.
    assert f"trainable params: {2 * (4 * 32 + 3 * 48)} ||" in printed
    first, last = map(float, re.search(r"^loss: (\S+) -> (\S+)$", printed, re.M).groups())  # type: ignore[union-attr]
    assert last < first
    assert "14 layers, such as rank-one.RankOneLayer at model.model.layers.0.self_attn.q_proj" in printed
    answers = re.search(r"^fox: '(.*)'\nbase: '(.*)'\nfor llama.cpp: \d+ bytes$", printed, re.M)
    assert answers is not None and answers[1] != answers[2]


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_METHODS", registry.methods())
    monkeypatch.syspath_prepend(str(save_script(tmp_path).parent))
    importlib.import_module("rank_one")
    yield
    del sys.modules["rank_one"]


@pytest.mark.usefixtures("imported")
@pytest.mark.parametrize("family", [LLAMA, BERT, T5], ids=str)
def test_it_keeps_the_contract_once_its_file_is_imported(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = contract.Example({"target_modules": "all-linear"}, merges=True)
    monkeypatch.setitem(contract.EXAMPLES, "rank-one", example)
    case = contract.Case("rank-one", family)
    contract.require_contract(case, tmp_path)
    contract.test_merged_equals_unmerged_and_unmerges_to_the_same_bits(case)
    contract.test_merged_for_good_is_a_plain_model_with_the_same_output(case)
    contract.test_a_copy_of_the_model_gives_the_same_output(case)
