from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from manytune.errors import DamagedError
from manytune.store.digests import digest_of
from manytune.store.manifest import Manifest
from manytune.store.remote.index import File, Index, Kept

UPLOAD = "20261130T041300Z-0123456789abcdef"


@pytest.fixture
def manifest(sources: list[Path]) -> Manifest:
    return Manifest.read(sources[0] / "manifest.json")


@pytest.fixture
def index(manifest: Manifest) -> Index:
    files = {name: File(10, sha256) for name, sha256 in manifest.files.items()}
    digest = digest_of(manifest)
    kept = Kept(UPLOAD, files, {}, frozenset({"production"})).with_manifest(manifest)
    return Index(3, {digest: kept}, {"user/one": digest}, ("0" * 32,))


def test_an_index_is_read_as_it_was_written(index: Index, manifest: Manifest) -> None:
    again = Index.from_bytes(index.to_bytes(), number=3, where="here")
    assert again == index
    ((digest, kept),) = again.adapters.items()
    assert kept.read_manifest(digest, "here") == manifest


def changed(index: Index, *keys: str, value: Any) -> bytes:
    """An index with one value changed; `DIGEST` stands for its adapter."""
    content = json.loads(gzip.decompress(index.to_bytes()))
    (digest,) = index.adapters
    place = content
    for key in keys[:-1]:
        place = place[digest if key == "DIGEST" else key]
    place[keys[-1]] = value
    return gzip.compress(json.dumps(content).encode())


HASH = "0" * 64


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("format",), 2, "expected an index of format 1, found 2"),
        (("adapters",), [], "adapters must be"),
        (("adapters", "../../etc"), {}, "an entry must be"),
        (("adapters", HASH), [], "an entry must be"),
        (("adapters", "DIGEST", "upload"), "../elsewhere", "upload must be"),
        (("adapters", "DIGEST", "revision"), -1, "revision must be"),
        (("adapters", "DIGEST", "tags"), ["../up"], "tags must be"),
        (("adapters", "DIGEST", "files"), {"../../.bashrc": [1, HASH]}, "files must be"),
        (("adapters", "DIGEST", "files"), {"/etc/passwd": [1, HASH]}, "files must be"),
        (("adapters", "DIGEST", "files"), {"a": [-1, HASH]}, "files must be"),
        (("adapters", "DIGEST", "files"), {"a": [1 << 60, HASH]}, "files must be"),
        (("adapters", "DIGEST", "files"), {"a": [True, HASH]}, "files must be"),
        (("adapters", "DIGEST", "files"), {"a": [1, "short"]}, "files must be"),
        (("adapters", "DIGEST", "manifest"), "text", "manifest must be"),
        (("names",), {"../up": HASH}, "names must be"),
        (("names",), {"one": HASH}, "names must be"),
        (("names",), {"one": []}, "names must be"),
        (("adapters", "DIGEST", "files"), {"a" * 300: [1, HASH]}, "files must be"),
        (("adapters", "DIGEST", "files"), {str(n): [1, HASH] for n in range(1001)}, "files must be"),
        (("recent",), ["x"], "recent must be"),
    ],
)
def test_a_value_that_is_wrong_or_leads_out_is_refused(
    keys: tuple[str, ...], value: Any, message: str, index: Index
) -> None:
    with pytest.raises(DamagedError, match=message):
        Index.from_bytes(
            changed(index, *keys, value=value), number=1, where="s3://b/index/0000000001.json.gz"
        )


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"{", mtime=0), gzip.compress(b"[" * 100_000), gzip.compress(b"{}", mtime=0)[:-4]],
)
def test_what_is_no_index_is_named(content: bytes) -> None:
    with pytest.raises(DamagedError, match="s3://b/i: expected an index"):
        Index.from_bytes(content, number=1, where="s3://b/i")


def test_an_index_that_unpacks_to_too_much_is_refused(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manytune.store.remote.index._MOST_UNPACKED", 1000)
    with pytest.raises(DamagedError, match="too large"):
        Index.from_bytes(index.to_bytes(), number=1, where="here")


def test_an_adapter_cannot_be_kept_under_another_ones_digest(index: Index) -> None:
    ((digest, kept),) = index.adapters.items()
    with pytest.raises(DamagedError, match="manifest of another adapter"):
        kept.read_manifest(digest[::-1], "here")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "extra.py"])
def test_files_are_those_of_the_manifest(name: str, index: Index) -> None:
    ((digest, kept),) = index.adapters.items()
    other = Kept(kept.upload, {**kept.files, name: File(1, HASH)}, kept.manifest)
    with pytest.raises(DamagedError, match=name):
        other.read_manifest(digest, "here")


def test_a_manifest_that_cannot_be_written_down_hides_no_other_and_keeps_nobody_from_writing(
    index: Index,
) -> None:
    ((digest, kept),) = index.adapters.items()
    odd = Kept(kept.upload, kept.files, {**kept.manifest, "base": "\ud800"})
    index = index.with_adapter(digest, odd)
    again = Index.from_bytes(index.to_bytes(), number=3, where="here")
    with pytest.raises(DamagedError, match="can't be written down"):
        again.adapters[digest].read_manifest(digest, "here")
