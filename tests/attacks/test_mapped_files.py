"""What happens to an adapter's file while it is in use doesn't reach whoever uses it, nor ends the process."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from tests.attacks.small_server import ask_of
from tests.server.world import app_of, fill_store, save_base
from tests.store.adapters_made import make_adapter

from manytune.errors import DamagedError
from manytune.store import resident
from manytune.store.base import Base
from manytune.store.resident import ResidentAdapter, read_resident
from manytune.store.store import AdapterStore
from manytune.store.verification import verify_adapter

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture
def adapter(tmp_path: Path, base: Base) -> Path:
    return make_adapter(tmp_path / "adapter", base)


def values(adapter: ResidentAdapter) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in adapter.tensors.items()}


def truncated(file: Path) -> None:
    os.truncate(file, 16)


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def zeroed(file: Path) -> None:
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(size // 2)
        opened.write(bytes(size - size // 2))


def in_another_process(check: Callable[[], bool]) -> bool:
    """Whether a check holds; a signal that ends the process doesn't end this one."""
    child = os.fork()
    if not child:
        found = False
        try:
            found = check()
        finally:
            os._exit(0 if found else 1)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("change", [truncated, emptied, zeroed])
@pytest.mark.parametrize("has_manifest", [True, False])
def test_an_adapter_in_memory_is_what_its_digest_says_whatever_becomes_of_the_file(
    change: Callable[[Path], None], has_manifest: bool, adapter: Path
) -> None:
    if not has_manifest:
        (adapter / "manifest.json").unlink()
    expected = values(read_resident(adapter))
    held = read_resident(adapter)
    change(adapter / TENSORS)

    def is_unchanged() -> bool:
        return all(torch.equal(held.tensors[name], tensor) for name, tensor in expected.items())

    assert in_another_process(is_unchanged)
    if has_manifest:
        with pytest.raises(DamagedError):
            read_resident(adapter)


@pytest.mark.parametrize("name", [TENSORS, CONFIG])
def test_a_file_that_changes_right_after_its_hash_was_compared_is_not_used(
    name: str, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_resident(adapter)
    before, opened = values(expected), resident.open_adapter

    def opened_then_changed(*args: Any, **kwargs: Any) -> Any:
        found = opened(*args, **kwargs)
        if name == TENSORS:
            zeroed(adapter / TENSORS)
        else:
            config = json.loads((adapter / CONFIG).read_text())
            (adapter / CONFIG).write_text(json.dumps(config | {"lora_alpha": 4096}))
        return found

    monkeypatch.setattr(resident, "open_adapter", opened_then_changed)
    if name == CONFIG:
        with pytest.raises(DamagedError, match="changed while it was read"):
            read_resident(adapter)
        return
    found = read_resident(adapter)
    assert found.digest == expected.digest
    assert all(torch.equal(found.tensors[key], tensor) for key, tensor in before.items())


def test_tensors_read_for_a_verification_are_no_views_of_the_file(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isfinite = torch.isfinite

    def cut_off_meanwhile(tensor: torch.Tensor) -> torch.Tensor:
        truncated(adapter / TENSORS)
        return isfinite(tensor)

    monkeypatch.setattr(torch, "isfinite", cut_off_meanwhile)
    assert in_another_process(lambda: verify_adapter(adapter).tensors == 8)


def with_header(adapter: Path, change: Callable[[dict[str, Any]], dict[str, Any]], padding: int = 0) -> None:
    """Give an adapter without a manifest another header; the tensors stay."""
    (adapter / "manifest.json").unlink()
    content = (adapter / TENSORS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(change(json.loads(content[8 : 8 + length]))).encode() + b" " * padding
    (adapter / TENSORS).write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


@pytest.mark.parametrize(
    ("change", "padding", "said"),
    [
        (lambda header: header, 17 << 20, "at most 16,777,216"),
        (lambda header: header | {"__metadata__": {"note": "x" * (2 << 20)}}, 0, "without metadata"),
        (lambda header: {**header, "x" * (3 << 20): header[max(header)]}, 0, "overlap"),
        (lambda header: {**header, "deep": [0]}, 0, "TypeError"),
    ],
    ids=["padding", "metadata", "the same bytes twice", "no entry"],
)
def test_a_header_beyond_what_its_tensors_need_is_refused(
    change: Callable[[dict[str, Any]], dict[str, Any]], padding: int, said: str, adapter: Path
) -> None:
    with_header(adapter, change, padding)
    with pytest.raises(DamagedError, match=said):
        read_resident(adapter)


def test_a_header_counts_in_the_memory_that_an_adapter_takes(adapter: Path) -> None:
    before = read_resident(adapter).nbytes
    with_header(adapter, lambda header: header, padding=900_000)
    assert read_resident(adapter).nbytes >= before + 900_000


def test_a_stores_files_are_copies_that_nothing_writes_to_by_mistake(adapter: Path, tmp_path: Path) -> None:
    entry = AdapterStore(tmp_path / "store").add(adapter)
    for name in entry.manifest.files:
        copy, origin = entry.path / name, adapter / name
        assert stat.S_IMODE(copy.stat().st_mode) == 0o444
        assert copy.stat().st_ino != origin.stat().st_ino
    AdapterStore(tmp_path / "store").remove(entry.digest)
    assert not entry.path.exists()


@pytest.fixture
def store(base: Base, tmp_path: Path) -> AdapterStore:
    return fill_store(tmp_path, base)


@pytest.fixture
def server(base: Base, store: AdapterStore) -> Iterator[TestClient]:
    with TestClient(app_of(base, store), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize("change", [truncated, zeroed])
def test_a_server_goes_on_with_what_it_has_and_refuses_the_changed_file_later(
    change: Callable[[Path], None], server: TestClient, store: AdapterStore
) -> None:
    one, two = ask_of(server, "one"), ask_of(server, "two")
    file = store.path("one") / TENSORS
    file.chmod(0o644)
    change(file)
    assert ask_of(server, "one") == one  # in memory
    server.app.state.service.adapters.unload("one")  # type: ignore[attr-defined]
    status, body = ask_of(server, "one")
    assert status == 409 and body["error"]["code"] == "adapter_unusable"
    assert ask_of(server, "two") == two and two[0] == 200


def test_a_server_notices_a_change_and_lists_the_adapter_no_more(
    server: TestClient, store: AdapterStore
) -> None:
    assert ask_of(server, "one")[0] == ask_of(server, "two")[0] == 200
    file, touched = store.path("one") / TENSORS, store.path("two") / TENSORS
    file.chmod(0o644)
    zeroed(file)
    os.utime(touched, (1, 1))  # its content is the same
    server.app.state.service.adapters.note_changed_files()  # type: ignore[attr-defined]
    assert [one["id"] for one in server.get("/v1/models").json()["data"]] == ["base", "two"]
    assert [ask_of(server, name)[0] for name in ("one", "two")] == [409, 200]
