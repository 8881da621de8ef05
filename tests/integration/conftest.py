"""The served base and store of `tests/server`; one browser and one server with keys for all tests of pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.server.api_client import ROOT
from tests.server.browser import Page, browser
from tests.server.conftest import base, client, store
from tests.server.live import live
from tests.server.world import app_of, fill_store, new_version

from manytune.server.access.auth import Key, Keys
from manytune.store.base import Base
from manytune.store.store import AdapterStore

__all__ = ["base", "client", "store"]

USER = Key(name="user", sha256="04f8996da763b7a969b1028ee3007569eaf3a635486ddab211d512c85b9df8fb")


@dataclass(frozen=True)
class Pages:
    """A tab, and the server that it looks at.

    Attributes:
        tab: The tab.
        address: Where the server is.
        app: The server's application.
        store: Its adapters: `one`, `two`, which has a former version and the tag `production`, and three others.
    """

    tab: Page
    address: str
    app: Any
    store: AdapterStore

    def open(self, path: str, *, key: str = "root", width: int = 1400, dark: bool = False) -> Page:
        """A page as somebody sees it who has entered a key in this tab before."""
        self.tab.open(self.address + "/healthz", width=width, dark=dark)
        self.tab.see(f"localStorage.clear(); sessionStorage.setItem('manytune-key', {key!r})")
        self.tab.open(self.address + path, width=width, dark=dark)
        return self.tab


@pytest.fixture(scope="session")
def pages(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    folder = tmp_path_factory.mktemp("pages")
    adapters = fill_store(folder, base, ("one", "two", "zeta/1", "zeta/2", "zeta/3"))
    new_version(adapters, folder, base, "two", seed=9)
    adapters.tag("two", "production")
    adapters.add_scores("two", {"rouge1": 0.41234})
    app = app_of(base, adapters, Keys([ROOT, USER]))
    with live(app) as server, browser(folder / "browser") as tab:
        for domain in ("Network", "Runtime", "Log"):
            tab.do(f"{domain}.enable")
        yield Pages(tab, f"http://localhost:{server.port}", app, adapters)


@pytest.fixture(autouse=True)
def _asks_nobody_else(request: pytest.FixtureRequest) -> Iterator[None]:
    """No page asks another server than its own for anything, or breaks its own policy."""
    if "pages" not in request.fixturenames:
        yield
        return
    found: Pages = request.getfixturevalue("pages")
    found.tab.events.clear()
    yield
    found.tab.see("1")  # so that all that was said is here
    asked = [one["params"] for one in found.tab.events if one["method"] == "Network.requestWillBeSent"]
    urls = [one["request"]["url"] for one in asked]
    assert urls and all(url.startswith((found.address + "/", "data:", "blob:")) for url in urls), urls
    said = [one["params"] for one in found.tab.events if one["method"] == "Log.entryAdded"]
    assert not [one for one in said if "Content Security Policy" in one["entry"]["text"]], said
    thrown = [one for one in found.tab.events if one["method"] == "Runtime.exceptionThrown"]
    assert not thrown, thrown
