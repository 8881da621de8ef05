"""The report in a real browser: its filters, its plots, and that it asks nobody for anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.report.whole import whole
from tests.server.browser import FOUND, Page, browser

from manytune.evaluation.report import render_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FOUND is None, reason="no Chromium or Chrome here"),
]

# Uses the page as a reader would, and says what it saw.
SCRIPT = """
(() => {
  const shown = (selector) => [...document.querySelectorAll(selector)].filter((e) => e.checkVisibility()).length;
  const set = (id, value) => {
    const element = document.getElementById(id);
    element.value = value;
    element.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const box = (place) => {
    const element = document.querySelectorAll("input[name=system]")[place];
    element.checked = !element.checked;
    element.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const found = { first: shown("article") };
  document.querySelector("details.rest").open = true;
  Object.assign(found, { all: shown("article"), answers: shown(".answer") });
  found.count = document.getElementById("filter-count").textContent;
  set("filter-change", "gain");
  found.gains = shown("article");
  found.marked_gains = shown('article[data-change="gain"]');
  set("filter-task", "approach");
  found.gains_of_one_task = shown("article");
  set("filter-change", "");
  set("filter-task", "");
  set("filter-words", "no such words");
  found.nonsense = shown("article");
  set("filter-words", "");
  box(1);
  found.answers_without_one_system = shown(".answer");
  box(1);
  found.all_again = shown("article");
  const area = (e) => e.getBoundingClientRect();
  found.spots = [...document.querySelectorAll(".plot .spot")].map((spot) => {
    const [inner, outer] = [area(spot), area(spot.parentElement)];
    const [x, y] = [inner.x + inner.width / 2, inner.y + inner.height / 2];
    return x >= outer.left && x <= outer.right && y >= outer.top - 1 && y <= outer.bottom + 1;
  });
  found.curves = [...document.querySelectorAll(".plot path")].filter((path) => path.getTotalLength() > 0).length;
  found.blocks = shown(".whiskers .block");
  found.sideways = document.documentElement.scrollWidth - innerWidth;
  found.width = innerWidth;
  found.back = getComputedStyle(document.body).backgroundColor;
  return found;
})()
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        for domain in ("Network", "Runtime", "Log"):
            found.do(f"{domain}.enable")
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_report(whole(), title="Worth it?"), encoding="utf-8")
    return path


def complaints(tab: Page) -> list[dict[str, Any]]:
    """What the console got since the last time, and every request but that for the page itself."""
    events, tab.events = tab.events, []
    return [
        event
        for event in events
        if event["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        or (event["method"] == "Network.requestWillBeSent" and event["params"]["type"] != "Document")
    ]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 800, 1400])
def test_filters_work_plots_are_drawn_and_nothing_is_asked_of_anybody(
    tab: Page, report: Path, width: int, dark: bool
) -> None:
    complaints(tab)
    tab.open(report.as_uri(), width=width, dark=dark)
    found = tab.see(SCRIPT)
    assert found["first"] == 6
    assert (found["all"], found["all_again"], found["count"]) == (24, 24, "24 of 24 documents")
    assert 0 < found["gains_of_one_task"] < found["gains"] == found["marked_gains"] < 24
    assert found["nonsense"] == 0
    assert found["answers"] == 24 * 4  # the reference and three systems
    assert found["answers_without_one_system"] == 24 * 3
    assert len(found["spots"]) == 2 + 2 + 2 and all(found["spots"])  # by rank, by parameters, by seconds
    assert found["curves"] >= 4 and found["blocks"] == 4
    assert found["width"] == width
    assert found["sideways"] <= 0, f"{found['sideways']} pixels wider than the window"
    lightness = sum(int(part) for part in found["back"].removeprefix("rgb(").rstrip(")").split(","))
    assert (lightness < 3 * 64) if dark else (lightness > 3 * 192)
    assert complaints(tab) == []


def test_on_paper_everything_is_unfolded_and_the_filters_are_gone(tab: Page, report: Path) -> None:
    tab.open(report.as_uri(), width=800)
    unfolded = "[...document.querySelectorAll('details > :not(summary)')].map((e) => e.checkVisibility())"
    filters = "document.querySelector('.filters').offsetParent === null"
    assert not any(tab.see(unfolded)) and not tab.see(filters)
    tab.do("Emulation.setEmulatedMedia", media="print")
    try:
        assert all(tab.see(unfolded)) and tab.see(filters)
    finally:
        tab.do("Emulation.setEmulatedMedia", media="")


def test_console_errors_and_requests_would_be_seen(tab: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<img src='other.png'><script>console.error('seen'); nothing.here()</script>")
    complaints(tab)
    tab.open(broken.as_uri(), width=800)
    assert {found["method"] for found in complaints(tab)} >= {
        "Runtime.consoleAPICalled",
        "Runtime.exceptionThrown",
        "Network.requestWillBeSent",
    }
