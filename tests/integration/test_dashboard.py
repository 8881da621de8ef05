"""The operator's page as somebody uses it: by keyboard alone, on a phone, in the dark."""

from __future__ import annotations

import json
import math
import time
from http.client import HTTPConnection
from typing import Any

import pytest
from tests.integration.conftest import Pages
from tests.integration.readable import check_readable, show_on
from tests.server.browser import FOUND, Page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(FOUND is None, reason="no browser here")]

STATE = "document.querySelector('#state').textContent"
ROWS = "[...document.querySelectorAll('#adapters th')].map((one) => one.firstChild.textContent)"


def an_hour(pages: Pages) -> None:
    """An hour of samples, in which `one` was asked in every other interval and the rest by nobody."""
    history = pages.app.state.history
    history._samples.clear()
    now = time.time() // 10 * 10
    traffic = pages.app.state.service.metrics.traffic
    traffic.take()
    for place in range(360):
        if place % 2:
            for _ in range(1 + round(2 + 2 * math.sin(place / 20))):
                traffic.token("one", "user", 0.25)
                traffic.token("one", "user", None)
                traffic.read("one", "user", 5)
                traffic.ended("one", "user")
        history.sample(now - 10 * (359 - place))


def charts(page: Page) -> Any:
    """Of each chart: its title, the words for those who can't see it, and whether each line is drawn."""
    return page.see(
        "[...document.querySelectorAll('.chart')].map((one) => [one.querySelector('figcaption').textContent,"
        " one.querySelector('.plot').getAttribute('aria-label'),"
        " [...one.querySelectorAll('.line')].map((line) => line.getTotalLength() > 50)])"
    )


def test_by_keyboard_alone_an_operator_looks_finds_acts_and_goes_back_to_a_former_version(
    pages: Pages,
) -> None:
    an_hour(pages)
    page = pages.open("/operator", key="")
    page.wait(f"{STATE}.startsWith('Enter an admin key')")
    page.tab_to("#key")
    page.write("root")
    page.press("Enter")
    page.wait("document.querySelectorAll('#adapters tr').length === 5")
    found = {title: (words, lines) for title, words, lines in charts(page)}
    assert list(found)[:4] == ["Requests", "Tokens", "Time to first token", "Queue"] and len(found) == 7
    assert "highest in the last hour 30/min" in found["Requests"][0]
    assert all(found["Requests"][1]) and len(found["Tokens"][1]) == 2 and all(found["Tokens"][1])
    assert "process" in found["Memory"][0] and len(found["Memory"][1]) == 1  # there is no device
    # One key's requests, and one model's.
    for choice, words in (("keys user", "mean 250 ms"), ("models one", "mean 250 ms"), ("", "median 250 ms")):
        page.see(f"document.querySelector('#whose').value = {choice!r};"
                 " document.querySelector('#whose').dispatchEvent(new Event('change'))")  # fmt: skip
        assert words in charts(page)[2][1]
    assert page.see("document.querySelector('#keys th').textContent") == "user"
    # Search and sort.
    assert page.see(ROWS) == ["one", "two", "zeta/1", "zeta/2", "zeta/3"]
    page.tab_to("#adapter-search")
    page.write("production")
    assert page.see(ROWS) == ["two"]
    page.see("document.activeElement.select()")
    page.write(" ")
    page.tab_to("#adapter-heads th:nth-child(7) button")
    page.press("Enter")
    assert page.see(ROWS)[0] == "one"  # the one that was asked
    assert page.see("document.querySelector('#adapter-heads th:nth-child(7)').ariaSort") == "descending"
    # Act, and be refused.
    page.tab_to("[aria-label='pin one']")
    page.press("Enter")
    page.wait(f"{STATE} === 'pin one: done.'")
    assert page.see("document.activeElement.ariaLabel") == "unpin one"
    page.tab_to("[aria-label='unload one']")
    page.press("Enter")
    page.wait("document.querySelector('#state').classList.contains('wrong')")
    assert "pinned" in page.see(STATE)
    # A former version; Escape closes without going back to it.
    present = pages.store.resolve("two")
    former = next(one.digest for one in pages.store.versions("two") if one.digest != present)
    page.tab_to("[aria-label='versions of two']")
    page.press("Enter")
    page.wait("document.querySelector('#versions').open")
    assert "rouge1" in page.see("document.querySelector('#versions-table').textContent")
    page.press("Escape")
    assert not page.see("document.querySelector('#versions').open") and pages.store.resolve("two") == present
    page.press("Enter")
    page.wait("document.querySelector('#versions').open")
    page.tab_to(f"[aria-label='Go back to {former[:12]}']")
    page.press("Enter")
    page.wait(f"{STATE}.startsWith('two is version')")
    assert pages.store.resolve("two") == former
    audit = page.see("[...document.querySelectorAll('#audit tr')].map((row) => row.textContent)")
    assert f"rootrollback twodonetwo: {present[:12]} to {former[:12]}" in audit[0]
    assert "unload onerefused (409)" in audit[1] and "pin onedone" in audit[2]
    # Through the server, which lists the version with its tag again at once, as other tests of this server expect.
    server = HTTPConnection(pages.address.removeprefix("http://"))
    headers = {"authorization": "Bearer root", "content-type": "application/json"}
    server.request("POST", "/v1/adapters/two/rollback", json.dumps({"root": present}), headers)
    assert server.getresponse().status == 200 and pages.store.resolve("two") == present
    server.close()
    for width, dark in ((360, False), (360, True), (800, True), (1400, False), (1400, True)):
        show_on(page, width, dark=dark)
        check_readable(page, width, dark=dark)


def test_what_went_wrong_with_an_adapter_is_shown_and_a_key_without_rights_is_told_so(pages: Pages) -> None:
    page = pages.open("/operator", key="user", width=360)
    page.wait("document.querySelector('#state').classList.contains('wrong')")
    assert "needs an admin key" in page.see(STATE) and page.see("document.querySelector('#dashboard').hidden")
    pages.app.state.service.adapters.record_failure(
        "one", pages.store.resolve("one"), "expected JSON, found <b>"
    )
    page.see("document.querySelector('#key').value = 'root'; document.querySelector('#form').requestSubmit()")
    page.wait("document.querySelector('#adapters .error') !== null")
    assert (
        page.see("document.querySelector('#adapters .error').textContent")
        == "Last error: expected JSON, found <b>"
    )
    assert "adapters in memory" in page.see("document.querySelector('#sums').textContent")
    check_readable(page, 360, dark=False)
