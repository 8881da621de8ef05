"""`manytune adapters` with names that have a namespace, as those of a hub."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from tests.cli.test_adapters import adapters, base, done, folder, message

from manytune.store.base import Base
from manytune.store.store import AdapterStore

__all__ = ["base", "folder"]


@pytest.fixture
def kept(folder: Path) -> AdapterStore:
    done("add", "runs/summaries", "--name", "user/summaries")
    done("add", "runs/questions", "--name", "user")
    return AdapterStore(folder / "adapters")


def test_every_command_takes_the_name(kept: AdapterStore, base: Base) -> None:
    assert json.loads(done("show", "user/summaries", "--json"))["scores"] == {"validation_loss": 1.0}
    assert [one["names"] for one in json.loads(done("list", "--json"))] == [["user"], ["user/summaries"]]
    assert "2 files are intact" in done("verify", "user/summaries")
    done("alias", "user/summaries", "team/current")
    done("tag", "team/current", "production")
    done("unalias", "team/current")
    assert "Did you mean 'user/summaries'?" in message(adapters("show", "user/sumaries"))
    done("combine", "user/summaries", "user", "--name", "user/both", "--base", base.name)
    assert list(kept.names()) == ["user", "user/both", "user/summaries"]
    done("remove", "user/summaries", "--yes")
    assert list(kept.names()) == ["user", "user/both"]


def test_a_directory_that_is_there_comes_before_a_name(kept: AdapterStore, folder: Path) -> None:
    (folder / "user").mkdir()
    assert "there is no such directory" in message(adapters("show", "user/absent"))
    assert json.loads(done("show", "user/summaries", "--json"))["scores"] == {"validation_loss": 1.0}
    (folder / "runs" / "questions").rename(folder / "user" / "summaries")
    assert json.loads(done("show", "user/summaries", "--json"))["scores"] == {"validation_loss": 2.0}


def test_vllm_gets_a_directory_of_its_own_for_each_name(kept: AdapterStore, folder: Path) -> None:
    arguments = done("export", "user/summaries", "user", "--to", "vllm", "--output", "vllm").strip()
    there = (folder / "vllm").resolve()
    assert arguments.endswith(f"--lora-modules user/summaries={there}/user%2Fsummaries user={there}/user")
    for name, directory in (("user/summaries", "user%2Fsummaries"), ("user", "user")):
        exported = (there / directory / "adapter_model.safetensors").read_bytes()
        assert exported == (kept.path(name) / "adapter_model.safetensors").read_bytes()
    assert sorted(path.name for path in there.iterdir()) == ["user", "user%2Fsummaries", "vllm-arguments.txt"]


def test_other_programs_get_it_too(kept: AdapterStore, folder: Path, base: Base) -> None:
    done("export", "user/summaries", "--to", "peft", "--output", "peft")
    assert (folder / "peft" / "adapter_config.json").is_file()
    done("export", "user/summaries", "--to", "gguf", "--output", "a.gguf", "--base", base.name)
    assert gguf.GGUFReader(folder / "a.gguf").fields["adapter.type"].contents() == "lora"


@pytest.mark.parametrize("name", ["../up", "a/b/c", "/a", "a/.."])
def test_no_command_lets_a_name_lead_elsewhere(name: str, kept: AdapterStore, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    for command in (
        ["add", "runs/summaries", "--name", name],
        ["alias", "user", name],
        ["pull", "user/adapter", "--name", name],
    ):
        assert "can't be a name" in message(adapters(*command))
    for command in (["remove", name], ["unalias", name]):
        assert "there is no adapter" in message(adapters(*command))
    assert sorted(folder.rglob("*")) == before
