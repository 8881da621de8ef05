"""Google's and Azure's drivers as `make clouds` finds them: they say nothing of a bucket that isn't there."""

from __future__ import annotations

from typing import Any

import fsspec
import pytest

from manytune.errors import StoreError, UnreachableError
from manytune.store.remote import objects
from manytune.store.remote.failures import explained
from manytune.store.remote.location import location_of
from manytune.store.remote.objects import Objects
from manytune.store.remote.store import SharedStore


class Driver:
    """A driver whose account has no bucket, or one that is empty."""

    def __init__(self, has_bucket: bool) -> None:
        self.has_bucket = has_bucket
        self.asked: list[str] = []

    def find(self, prefix: str, detail: bool) -> dict[str, Any]:
        self.asked.append(prefix)
        return {}

    def info(self, path: str) -> dict[str, Any]:
        self.asked.append(path)
        if not self.has_bucket:
            raise FileNotFoundError(path)
        return {}

    def pipe_file(self, path: str, content: bytes, mode: str) -> None:
        raise FileNotFoundError(path)


@pytest.fixture(params=["gs", "az", "abfs"])
def url(request: pytest.FixtureRequest) -> str:
    return f"{request.param}://bucket/adapters"


def driven_by(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setattr(objects, "_filesystem", lambda location: driver)
    return driver


def test_a_bucket_that_is_not_there_is_no_empty_store(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driven_by(Driver(has_bucket=False), monkeypatch)
    for operation in (
        lambda: SharedStore(url).names(),
        lambda: Objects(location_of(url)).create("index/1", b""),
    ):
        with pytest.raises(StoreError, match=r"there is no bucket 'bucket'\. Create it"):
            operation()


def test_a_bucket_is_sought_where_a_listing_is_empty(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = driven_by(Driver(has_bucket=True), monkeypatch)
    assert SharedStore(url).names() == {}
    assert driver.asked == ["bucket/adapters/index", "bucket"]


def test_what_the_credentials_may_not_see_is_no_mistake(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = driven_by(Driver(has_bucket=True), monkeypatch)

    def forbidden(path: str) -> None:
        raise OSError("Forbidden: storage.buckets.get")

    monkeypatch.setattr(driver, "info", forbidden)
    assert SharedStore(url).names() == {}


def test_nothing_is_tried_again_that_the_driver_has_tried_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = driven_by(Driver(has_bucket=True), monkeypatch)
    tries: list[str] = []

    def cut_off(prefix: str, detail: bool) -> None:
        tries.append(prefix)
        raise ConnectionError

    monkeypatch.setattr(driver, "find", cut_off)
    with pytest.raises(UnreachableError):
        SharedStore(url).names()
    assert len(tries) == 1


def test_a_server_of_google_that_stays_silent_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, Any] = {}

    def filesystem(protocol: str, **options: Any) -> Driver:
        given.update(options)
        return Driver(has_bucket=True)

    monkeypatch.setattr(fsspec, "filesystem", filesystem)
    Objects(location_of("gs://bucket/adapters"))
    limit = given["requests_timeout"]
    assert limit.total is None and limit.sock_read == 60 and limit.sock_connect == 5
    monkeypatch.setitem(fsspec.config.conf, "gs", {"requests_timeout": 7})
    Objects(location_of("gs://bucket/adapters"))
    assert given["requests_timeout"] == 7


def test_an_account_that_is_not_named_is_a_matter_of_credentials() -> None:
    error = ValueError(
        "unable to connect to account for Must provide either a connection_string or account_name with credentials!!"
    )
    said = str(explained(error, location_of("az://container/adapters")))
    assert "refuses your credentials" in said and "AZURE_STORAGE_CONNECTION_STRING" in said
