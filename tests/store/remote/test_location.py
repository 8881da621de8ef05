from __future__ import annotations

from pathlib import Path

import pytest

from manytune.errors import StoreError
from manytune.store.opening import open_store
from manytune.store.remote.location import is_url, local_directory, location_of
from manytune.store.remote.store import SharedStore
from manytune.store.store import AdapterStore


@pytest.mark.parametrize(
    "url", ["s3://bucket/a/prefix", "s3://bucket/a/prefix/", Path("s3://bucket/a/prefix")]
)
def test_a_url_names_a_bucket_and_a_prefix(url: str | Path) -> None:
    location = location_of(url)
    assert (location.protocol, location.bucket, str(location)) == ("s3", "bucket", "s3://bucket/a/prefix")
    assert location.url("index/1") == "s3://bucket/a/prefix/index/1"


@pytest.mark.parametrize("place", ["adapters", "/data/adapters", "./a:b", "C:/adapters", "~/adapters"])
def test_paths_are_no_urls(place: str) -> None:
    assert not is_url(place) and local_directory(place) == Path(place).expanduser()


@pytest.mark.parametrize(
    "url", ["file:///data/adapters", Path("file:///data/adapters"), "file:/data/adapters"]
)
def test_a_file_url_is_a_directory(url: str | Path) -> None:
    assert local_directory(url) == Path("/data/adapters")


def test_a_file_url_of_another_host_is_refused() -> None:
    with pytest.raises(StoreError, match="expected an absolute path"):
        local_directory("file://host/data")


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3://bucket/../other", "s3://bucket/a//b", "s3://b/a?versionId=1", "s3://b/*", "s3://b/a b"],
)
def test_a_url_that_could_mean_something_else_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="can't be a part of a store's URL"):
        location_of(url)


def test_credentials_in_a_url_are_refused_and_not_shown() -> None:
    with pytest.raises(StoreError, match="can't hold credentials") as error:
        location_of("s3://KEY:SECRET@bucket/prefix")
    assert "SECRET" not in str(error.value)


def test_a_store_is_opened_where_it_is(tmp_path: Path, url: str) -> None:
    assert type(open_store(tmp_path)) is type(open_store(f"file://{tmp_path}")) is AdapterStore
    assert isinstance(open_store(url), SharedStore)
    with pytest.raises(StoreError, match="open_store opens a URL"):
        AdapterStore(url)


def test_an_unknown_kind_of_storage_is_named() -> None:
    with pytest.raises(StoreError, match=r"no storage of the kind 'nothing'.*Expected s3, gs, az"):
        open_store("nothing://bucket/prefix")


@pytest.mark.parametrize(
    ("url", "how"),
    [("gs://b/p", r"gcsfs, or pip install .*\[gs\]"), ("az://c/p", r"adlfs, or pip install .*\[az\]")],
)
def test_a_driver_that_is_not_installed_is_named(url: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for driver in ("gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(StoreError, match=f"isn't installed: pip install {how}"):
        open_store(url)
