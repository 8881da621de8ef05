"""The pages as somebody uses them: by keyboard alone, on a phone, in the dark."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.server.browser import FOUND, Page, browser
from tests.server.live import live
from tests.server.world import alone, app_of, fill_store, plain_ids

from manytune.server.auth import Key, Keys
from manytune.store.base import Base
from manytune.store.store import AdapterStore

pytestmark = [pytest.mark.slow, pytest.mark.skipif(FOUND is None, reason="no browser here")]
ROOT = Key(name="root", sha256=hashlib.sha256(b"root").hexdigest(), admin=True)
SCREENS = [(360, False), (360, True), (1400, False), (1400, True)]

#: Contrast of each text with what is behind it, by the formula of WCAG 2; the smallest one.
CONTRAST = """(() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => parts(color).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if ((parts(color)[3] ?? 1) > 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility() && !one.disabled &&
    [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
  return Math.min(...texts.map((one) => {
    const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  }));
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


def answers(page: Page) -> Any:
    return page.see(
        "Object.fromEntries([...document.querySelectorAll('article')].map((card) =>"
        " [card.querySelector('h2').textContent, card.querySelector('.text').textContent]))"
    )


def test_by_keyboard_alone_one_asks_compares_switches_and_asks_again(
    page: Page, base: Base, store: AdapterStore
) -> None:
    with live(app_of(base, store)) as server:
        page.open(f"http://localhost:{server.port}/", width=1400)
        page.wait("document.querySelectorAll('#models input').length === 3")
        page.tab_to("#prompt")
        page.write("abc")
        limit_to(page, 20)
        page.see(
            "window.changes = {}; new MutationObserver((all) => all.forEach((one) => { const name ="
            " one.target.closest?.('article')?.querySelector('h2').textContent;"
            " if (one.target.className === 'text') changes[name] = (changes[name] || 0) + 1; }))"
            ".observe(document.querySelector('#answers'), {childList: true, subtree: true})"
        )
        page.press("Enter", control=True)
        page.wait("document.querySelector('#state').textContent === 'Done.'")
        ids = plain_ids(base, "abc")
        adapters = {name: alone(base, store, name, ids, max_new_tokens=20).text for name in ("one", "two")}
        found = answers(page)
        assert list(found) == ["base", "one", "two"]
        assert {name: found[name] for name in adapters} == adapters
        # They came piece by piece, not at once.
        changes = page.see("changes")
        assert all(changes[name] > 1 for name, text in found.items() if len(text) > 1), changes
        page.tab_to("#models input[value=one]")
        page.press(" ")
        page.tab_to("#ask")
        page.press("Enter")
        page.wait(
            "document.querySelectorAll('article').length === 2 &&"
            " document.querySelector('#state').textContent === 'Done.'"
        )
        assert answers(page)["two"] == adapters["two"]
        page.tab_to("#copy-python")
        assert page.see("document.activeElement.matches(':focus-visible')")


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_the_playground_fits_and_can_be_read(
    page: Page, base: Base, store: AdapterStore, width: int, dark: bool
) -> None:
    with live(app_of(base, store)) as server:
        page.open(f"http://localhost:{server.port}/", width=width, dark=dark)
        page.wait("document.querySelectorAll('#models input').length === 3")
        page.tab_to("#prompt")
        page.write("abc")
        limit_to(page, 12)
        page.press("Enter", control=True)
        page.wait("document.querySelector('#state').textContent === 'Done.'")
        seen = page.see("document.querySelector('#load').textContent")
        assert "Together" in seen and "0 running, 0 waiting" in seen and "2 in memory" in seen
        check_readable(page, width, dark)


def test_the_playground_says_where_a_key_is_wanted_and_asks_for_metrics_no_more_once_refused(
    page: Page, base: Base, store: AdapterStore
) -> None:
    app = app_of(base, store, Keys([ROOT, Key(name="user", sha256=hashlib.sha256(b"user").hexdigest())]))
    with live(app) as server:
        page.open(f"http://localhost:{server.port}/", width=800)
        page.wait("document.querySelector('#state').textContent === 'Enter your API key above.'")
        assert "needs an API key" in page.see("document.querySelector('#models').textContent")
        page.tab_to("#key")
        page.write("user")
        page.press("Tab")
        page.wait("document.querySelectorAll('#models input').length === 3")
        limit_to(page, 12)
        for _ in range(2):
            page.see(
                "document.querySelector('#prompt').value = 'abc'; document.querySelector('#ask').click()"
            )
            page.wait("document.querySelector('#state').textContent === 'Done.'")
        assert "Together" in page.see("document.querySelector('#load').textContent")
        errors = app.state.service.metrics.http_errors
        assert errors.labels("401")._value.get() == 1 and errors.labels("403")._value.get() == 1


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_the_operators_page_fits_can_be_read_and_tells_what_went_wrong(
    page: Page, base: Base, tmp_path: Path, width: int, dark: bool
) -> None:
    store = fill_store(tmp_path, base)
    manifest = store.path("two") / "manifest.json"
    manifest.write_text(manifest.read_text()[:-20])
    with live(app_of(base, store, Keys([ROOT]))) as server:
        page.open(f"http://localhost:{server.port}/operator", width=width, dark=dark)
        page.tab_to("#key")
        page.write("root")
        page.press("Enter")
        page.wait("document.querySelectorAll('tbody tr').length === 2")
        page.tab_to("[aria-label='pin one']")
        page.press("Enter")
        page.wait("document.querySelector('#state').textContent === 'pin one: done.'")
        page.tab_to("[aria-label='load two']")
        page.press("Enter")
        page.wait("document.querySelector('#state').classList.contains('wrong')")
        assert "expected JSON" in page.see("document.querySelector('#state').textContent")
        assert "expected JSON" in page.see("document.querySelector('tbody tr:last-child .error').textContent")
        assert "1 of 2 adapters in memory" in page.see("document.querySelector('#sums').textContent")
        check_readable(page, width, dark)


def limit_to(page: Page, tokens: int) -> None:
    page.tab_to("#max-tokens")
    page.see("document.activeElement.select()")
    page.write(str(tokens))


def check_readable(page: Page, width: int, dark: bool) -> None:
    assert page.see("document.documentElement.scrollWidth") <= width
    assert page.see(CONTRAST) >= 4.5
    background = page.see("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 150) == dark


def test_reasoning_is_shown_while_it_is_written_and_folded_away_when_the_answer_begins(
    page: Page, base: Base, store: AdapterStore
) -> None:
    with live(app_of(base, store)) as server:
        page.open(f"http://localhost:{server.port}/", width=360)
        page.wait("document.querySelectorAll('#models input').length === 3")
        page.see(
            "window.card = new Card('one'); document.querySelector('#answers').append(card.box);"
            "card.take({text: '', reasoning_content: 'Two <b>and</b> '})"
        )
        seen = (
            "[card.reasoning.hidden, card.reasoning.open, card.thoughts.textContent, card.text.textContent]"
        )
        assert page.see(seen) == [False, True, "Two <b>and</b> ", ""]
        page.see("card.take({text: '', reasoning_content: 'two.'}); card.take({text: 'Four'})")
        assert page.see(seen) == [False, False, "Two <b>and</b> two.", "Four"]
        page.see("window.card = new Card('two'); card.take({text: 'Four'})")
        assert page.see("card.reasoning.hidden") is True
