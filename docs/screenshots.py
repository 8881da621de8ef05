"""Take the pictures of the report, the playground and the dashboard that the documentation shows.

    manytune compare examples/results/e2e-json.yaml
    python docs/screenshots.py runs/e2e-json --rows e2e-json.jsonl

The report is that of the run, and the answers in the playground are those of its base and its LoRA adapter to rows that
the run was asked about. The dashboard's hour of requests is invented, since nobody waits an hour for a picture. Needs
Chromium.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.server.browser import Page, browser  # noqa: E402
from tests.server.live import live  # noqa: E402

from manytune.engine.options import EngineOptions  # noqa: E402
from manytune.evaluation.report import render_report  # noqa: E402
from manytune.evaluation.results import read_evaluation  # noqa: E402
from manytune.server.access.auth import Key, Keys  # noqa: E402
from manytune.server.app import create_app  # noqa: E402
from manytune.server.settings import Settings  # noqa: E402
from manytune.store.base import load_base  # noqa: E402
from manytune.store.store import AdapterStore  # noqa: E402

IMAGES = Path(__file__).with_name("images")
WIDTH, HEIGHT = 1200, 900
KEYS = [
    Key(name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), admin=True)
    for name in ("operator", "helpdesk")
]


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="directory of a comparison")
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines with the messages to ask about")
    given = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser(Path(folder) / "browser") as page:
        report = Path(folder) / "report.html"
        evaluation = read_evaluation(given.run / "results.json")
        report.write_text(render_report(evaluation, title="What did fine-tuning improve?"), encoding="utf-8")
        page.open(report.as_uri(), width=WIDTH, height=HEIGHT)
        save(page, "report", height=1300)
        base = load_base("embedded")
        store = AdapterStore(Path(folder) / "store")
        (adapter,) = given.run.glob("trials/LoRA/*/adapter")
        scores = {one.metric: one.value for one in evaluation.result("LoRA").scores}
        store.add(adapter, name="restaurants", tags=["production"])
        store.add_scores("restaurants", scores)
        store.alias("restaurants", "restaurants-canary")
        settings = Settings(base_name="base")
        app = create_app(base, store, settings, Keys(KEYS), EngineOptions(max_batch=4))
        with live(app) as server:
            page.open(f"http://localhost:{server.port}/healthz", width=WIDTH, height=HEIGHT)
            page.see("sessionStorage.setItem('manytune-key', 'operator')")
            playground(page, server.port, given.rows)
            dashboard(page, server.port, app)


def playground(page: Page, port: int, rows: Path) -> None:
    """Ask the base and the adapter about two rows, and rate the first pair of answers."""
    page.open(f"http://localhost:{port}/", width=WIDTH, height=HEIGHT)
    page.wait("document.querySelectorAll('#models input').length === 3")
    page.see("document.querySelector('#models input[value=restaurants-canary]').click()")
    page.see("document.querySelector('#max-tokens').value = 80")
    lines = rows.read_text(encoding="utf-8").splitlines()
    for place in (-1, -40):
        system, asked = (one["content"] for one in json.loads(lines[place])["messages"][:2])
        page.see(f"document.querySelector('#system').value = {json.dumps(system)}")
        page.see("document.querySelector('#new').click()")
        page.see(f"document.querySelector('#prompt').value = {json.dumps(asked)}")
        page.see("document.querySelector('#ask').click()")
        page.wait("document.querySelector('#state').textContent === 'Done.'", seconds=300)
        page.see("document.querySelector('[aria-label=\"restaurants is better\"]').click()")
    page.see("scrollTo(0, 0)")
    save(page, "playground", height=HEIGHT)


def dashboard(page: Page, port: int, app: Any) -> None:
    """Invent an hour of requests, and show it."""
    history, traffic = app.state.history, app.state.service.metrics.traffic
    history._samples.clear()
    now = time.time() // 10 * 10
    for place in range(360):
        wave = 1 + math.sin(place / 45) + 0.3 * math.sin(place * 2.7)
        for number in range(round(4 * max(0.0, wave))):
            name = ("restaurants", "restaurants", "base", "restaurants-canary")[number % 4]
            key = KEYS[number % 2].name
            for token in range(60):
                traffic.token(name, key, 0.12 + 0.05 * number if token == 0 else None)
            traffic.read(name, key, 140)
            traffic.ended(name, key)
        history.sample(now - 10 * (359 - place))
        history._samples[-1] |= {
            "running": min(4, round(2 * max(0.0, wave))),
            "waiting": max(0, round(2 * wave) - 4),
            "kv_tokens": round(900 * max(0.0, wave)),
        }
    page.open(f"http://localhost:{port}/operator", width=1400, height=HEIGHT)
    page.wait("document.querySelectorAll('#adapters tr').length === 2")
    page.see("document.querySelector('[aria-label=\"pin restaurants\"]').click()")
    page.wait("document.querySelector('#state').textContent.includes('done')")
    save(page, "dashboard", height=HEIGHT)


def save(page: Page, name: str, *, height: int) -> None:
    """A small picture of the upper part of a page."""
    shot = Path(tempfile.mkdtemp()) / "shot.png"
    page.shot(shot)
    picture = Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")
    picture = picture.crop((0, 0, picture.width, min(height, picture.height)))
    picture.save(IMAGES / f"{name}.webp", quality=80, method=6)


if __name__ == "__main__":
    main()
