"""Adapters to and from a hub; the hub is a directory here, and nothing is sent anywhere."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from tests.store.adapters_made import make_adapter
from tests.store.peft_made import save_peft
from typer.testing import CliRunner

from manytune.cli.main import build_app
from manytune.errors import DamagedError, StoreError
from manytune.store.base import Base
from manytune.store.hub import pull_adapter, push_adapter
from manytune.store.store import AdapterStore


class FakeHub:
    """Repositories as directories, with the calls of huggingface_hub that are used."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: list[tuple[str, bool]] = []

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        self.made.append((repo_id, private))

    def upload_folder(
        self, *, repo_id: str, folder_path: str, allow_patterns: list[str], commit_message: str
    ) -> str:
        _copy(Path(folder_path), self.root / repo_id, allow_patterns)
        return f"hub:{repo_id}"

    def snapshot_download(self, repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        if not (self.root / repo_id).is_dir():
            raise LocalEntryNotFoundError(f"no {repo_id}")
        cache = self.root / "cache" / repo_id / (revision or "main")
        _copy(self.root / repo_id, cache, allow_patterns)
        return str(cache)


def _copy(source: Path, target: Path, patterns: list[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns):
            shutil.copyfile(file, target / file.name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.chdir(tmp_path)
    return fake


def done(*arguments: Any) -> str:
    result = CliRunner().invoke(build_app(), ["adapters", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_what_is_pushed_is_pulled_elsewhere_as_the_same_adapter(
    hub: FakeHub, tmp_path: Path, tiny_base: Base
) -> None:
    done("add", make_adapter(tmp_path / "made", tiny_base), "--name", "a")
    assert done("push", "a", "org/some-lora", "--private") == "hub:org/some-lora\n"
    assert hub.made == [("org/some-lora", True)]
    done("pull", "org/some-lora", "--store", "elsewhere")
    here, there = AdapterStore("adapters"), AdapterStore("elsewhere")
    assert there.resolve("org/some-lora") == here.resolve("a")


def test_of_what_others_put_on_a_hub_the_adapters_files_are_fetched(
    hub: FakeHub, tmp_path: Path, tiny_base: Base
) -> None:
    made = save_peft(hub.root / "org" / "theirs")
    (made / "optimizer.pt").write_bytes(b"PK\x03\x04")
    assert not (pull_adapter("org/theirs", revision="v2") / "optimizer.pt").exists()
    done("pull", "org/theirs", "--name", "mine", "--base", tiny_base.name)
    assert AdapterStore("adapters").names().keys() == {"mine"}
    own = "{% for m in messages %}{{ m.content }}<end>{% endfor %}"
    (made / "chat_template.jinja").write_text(own)
    entry = AdapterStore("adapters").add(pull_adapter("org/theirs"), base=tiny_base)
    assert entry.manifest.encoding_options == {"chat_template": own}


def test_what_a_hub_has_not_and_what_is_damaged_here_is_named(
    hub: FakeHub, tmp_path: Path, tiny_base: Base
) -> None:
    with pytest.raises(StoreError, match=r"org/none: the hub didn't do it.*Check the id"):
        pull_adapter("org/none")
    (hub.root / "org" / "model").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"org/model: expected an adapter with an adapter_config\.json"):
        pull_adapter("org/model")
    made = make_adapter(tmp_path / "made", tiny_base)
    (made / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(DamagedError):
        push_adapter(made, "org/damaged")
    assert hub.made == []
