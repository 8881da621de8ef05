"""Links among an adapter's files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.store.adapters_made import make_adapter

from manytune.errors import DamagedError
from manytune.store.base import Base
from manytune.store.exports import export_peft
from manytune.store.hub import push_adapter
from manytune.store.store import AdapterStore

LINKS = [
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "manifest.json",
    "chat_template.jinja",
]


def linked(adapter: Path, name: str, target: Path) -> None:
    """A file in place of which there is a link to a copy of it, or to something secret."""
    if (adapter / name).exists():
        shutil.move(adapter / name, target)
    else:
        target.write_text("{{ messages }} secret")
    (adapter / name).symlink_to(target)


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("has_manifest", [True, False])
def test_a_file_that_is_a_link_to_elsewhere_is_copied_nowhere(
    tiny_base: Base, tmp_path: Path, name: str, has_manifest: bool
) -> None:
    adapter = make_adapter(tmp_path / "adapter", tiny_base)
    if not has_manifest:
        (adapter / "manifest.json").unlink()
    linked(adapter, name, tmp_path / "elsewhere")
    store = AdapterStore(tmp_path / "store")
    with pytest.raises(
        DamagedError, match=rf"{name}: expected a file of the adapter, found a link to .*elsewhere"
    ):
        store.add(adapter, name="one", base=tiny_base)
    assert store.names() == {} and not any(
        path.is_file() for path in (tmp_path / "store" / "objects").rglob("*")
    )
    if name != "chat_template.jinja":
        with pytest.raises(DamagedError):
            export_peft(adapter, tmp_path / "exported")
        assert not (tmp_path / "exported").exists()


def test_a_card_that_is_a_link_is_sent_to_no_hub(tiny_base: Base, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", tiny_base)
    linked(adapter, "README.md", tmp_path / "key")
    with pytest.raises(DamagedError, match=r"found a link to .*key"):
        push_adapter(adapter, "user/adapter")


def test_links_within_a_hubs_cache_and_within_the_adapter_are_followed(
    tiny_base: Base, tmp_path: Path
) -> None:
    repository = tmp_path / "models--user--adapter"
    made = make_adapter(tmp_path / "made", tiny_base)
    snapshot, blobs = repository / "snapshots" / "0123abcd", repository / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for number, file in enumerate(sorted(path for path in made.iterdir() if path.name != "manifest.json")):
        shutil.copyfile(file, blobs / f"hash-{number}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"hash-{number}")
    store = AdapterStore(tmp_path / "store")
    entry = store.add(snapshot, name="cached", base=tiny_base)
    assert not any(path.is_symlink() for path in entry.path.rglob("*"))
    (tmp_path / "alias").symlink_to(made)
    assert store.add(tmp_path / "alias", name="alias", base=tiny_base).digest
