"""The report in a real browser: its filters, its plots, and that it asks nobody for anything."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.evaluation.report.whole import whole

from manytune.evaluation.report import render_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"no browser here: none of {', '.join(BROWSERS)}"),
]

# Uses the page as a reader would, and leaves what it saw in the document.
SCRIPT = """
addEventListener("load", () => {
  const shown = (selector) => [...document.querySelectorAll(selector)].filter((e) => e.offsetParent).length;
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
  const found = { all: shown("article"), answers: shown(".answer") };
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
  found.requests = performance.getEntriesByType("resource").length;
  found.sideways = document.documentElement.scrollWidth - innerWidth;
  found.width = innerWidth;
  const pre = document.createElement("pre");
  pre.id = "found";
  pre.textContent = JSON.stringify(found);
  document.body.append(pre);
});
"""


def visit(path: Path, directory: Path, *options: str) -> tuple[str, str]:
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--enable-logging=stderr",
        f"--user-data-dir={directory / 'profile'}",
        "--virtual-time-budget=3000",
        *options,
        "--dump-dom",
        path.as_uri(),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return ran.stdout, ran.stderr


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    shown = render_report(whole(), title="Worth it?")
    path.write_text(shown.replace("</body>", f"<script>{SCRIPT}</script></body>"), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_filters_work_plots_are_drawn_and_nothing_is_asked_of_anybody(
    page: Path, tmp_path: Path, width: int
) -> None:
    dom, log = visit(page, tmp_path, f"--window-size={width},900")
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom)[1]))
    assert (found["all"], found["all_again"], found["count"]) == (24, 24, "24 of 24 shown")
    assert 0 < found["gains_of_one_task"] < found["gains"] == found["marked_gains"] < 24
    assert found["nonsense"] == 0
    assert found["answers"] == 24 * 4  # the reference and three systems
    assert found["answers_without_one_system"] == 24 * 3
    assert len(found["spots"]) == 2 + 2 + 2 and all(found["spots"])  # by rank, by parameters, by seconds
    assert found["curves"] >= 4 and found["blocks"] == 4
    assert found["requests"] == 0
    assert found["sideways"] <= 0, f"{found['sideways']} pixels wider than the window of {found['width']}"
    assert "CONSOLE" not in log


def test_a_console_error_would_be_seen(tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<script>console.error('seen'); nothing.here()</script>")
    _, log = visit(broken, tmp_path)
    assert "CONSOLE" in log and "seen" in log
