from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.store.adapters_made import make_adapter

from manytune.errors import DamagedError
from manytune.methods.lora.config import LoraConfig
from manytune.store.base import Base
from manytune.store.resident import read_resident
from manytune.store.store import AdapterStore
from manytune.store.tensors_in_memory import TensorsInMemory


@pytest.fixture
def adapter(tmp_path: Path, tiny_base: Base) -> Path:
    return make_adapter(tmp_path / "adapter", tiny_base)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool],
)
def test_tensors_in_memory_are_those_of_the_file_in_their_own_dtype(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    values = {
        "matrix": torch.randn(3, 5).mul(9).to(dtype),
        "vector": torch.randn(7).mul(9).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.zeros(0, 4, dtype=dtype),
    }
    save_file(values, tmp_path / "t.safetensors", metadata={"format": "pt"})
    held = TensorsInMemory(tmp_path / "t.safetensors")
    assert len(held) == 4
    for name, expected in values.items():
        assert held[name].dtype == dtype
        assert held[name].is_contiguous()
        assert torch.equal(held[name], expected)
    # Names and places count as well: a file may have a long header.
    in_file = (tmp_path / "t.safetensors").stat().st_size
    assert in_file <= held.nbytes <= in_file + 4 * 1024
    with pytest.raises(KeyError):
        held["other"]


def test_a_header_that_ends_anywhere_is_read_too(tmp_path: Path) -> None:
    value = torch.arange(6, dtype=torch.float32).view(2, 3)
    for padding in range(4):
        header = json.dumps({"t": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
        header += b" " * (padding - len(header) % 4)
        path = tmp_path / f"{padding}.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + value.numpy().tobytes())
        assert torch.equal(TensorsInMemory(path)["t"], load_file(path)["t"])


def test_writing_to_a_view_by_mistake_never_reaches_the_file(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    before = file.read_bytes()
    held = TensorsInMemory(file)
    held[next(iter(held))].zero_()
    assert file.read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "longer", "no header", "sizes", "empty"])
def test_a_file_that_is_not_whole_is_refused(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    save_file({"t": torch.ones(4, 4)}, file)
    content = file.read_bytes()
    file.write_bytes(
        {
            "cut": content[:-1],
            "longer": content + b"\0",
            "no header": content[:20],
            "sizes": content.replace(b"[4,4]", b"[4,5]"),
            "empty": b"",
        }[damage]
    )
    with pytest.raises(DamagedError, match="it may have been cut off"):
        TensorsInMemory(file)


def test_a_resident_adapter_says_what_it_is(adapter: Path, tmp_path: Path) -> None:
    one = read_resident(adapter)
    entry = AdapterStore(tmp_path / "store").add(adapter)
    assert one.digest == entry.digest
    assert isinstance(one.config, LoraConfig)
    assert one.config.r == 2
    assert one.manifest == entry.manifest
    assert one.templates == {None: {"prompt": "{{ text }}", "completion": "{{ answer }}"}}
    assert one.nbytes == TensorsInMemory(adapter / "adapter_model.safetensors").nbytes


def test_without_a_manifest_the_files_alone_decide_the_digest(
    adapter: Path, tmp_path: Path, tiny_base: Base
) -> None:
    other = make_adapter(tmp_path / "other", tiny_base, seed=1)
    for path in (adapter, other):
        (path / "manifest.json").unlink()
    assert read_resident(adapter).digest == read_resident(adapter).digest != read_resident(other).digest
    assert read_resident(adapter).templates == {}


def test_a_changed_byte_is_found_before_the_adapter_runs(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedError, match="changed or damaged"):
        read_resident(adapter)
