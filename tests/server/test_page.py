"""The playground: whole in itself, and in a real browser it asks and shows answers side by side."""

import html
import json
import re
import shutil
import subprocess

import pytest
from fastapi.responses import HTMLResponse
from tests.server.live import live
from tests.server.world import alone, app_of, plain_ids

from manytune.server import gate

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)

# Uses the page as a person with a keyboard would, and leaves what it saw in the document.
SCRIPT = """<script>
const wait = async (holds) => { while (!holds()) await new Promise((done) => setTimeout(done, 20)); };
addEventListener("load", async () => {
  await wait(() => document.querySelector("#models input"));
  const found = { models: chosen(), names: [...document.querySelectorAll("button, input, textarea")].every(
    (one) => one.closest("label") || one.labels?.length || one.textContent) };
  $("use-fields").focus();
  $("use-fields").click();
  document.querySelector("#fields textarea").value = "abc";
  $("max-tokens").value = 12;
  document.querySelector("#fields textarea").dispatchEvent(
    new KeyboardEvent("keydown", { key: "Enter", ctrlKey: true, bubbles: true }));
  await wait(() => $("state").textContent === "Done.");
  found.answers = Object.fromEntries([...document.querySelectorAll("article")].map(
    (card) => [card.querySelector("h2").textContent, card.querySelector(".text").textContent]));
  found.facts = [...document.querySelectorAll(".facts")].map((facts) => facts.textContent);
  found.curl = asCurl();
  found.python = asPython();
  const frame = document.createElement("iframe");
  frame.style.width = "360px";
  frame.srcdoc = document.documentElement.outerHTML.replace(/<script[^]*<\\/script>/, "");
  document.body.append(frame);
  await new Promise((done) => frame.addEventListener("load", done));
  found.width = frame.contentDocument.documentElement.scrollWidth;
  frame.remove();
  document.body.dataset.found = JSON.stringify(found);
});
</script></body>"""


def test_the_page_asks_nobody_but_its_server(client):
    response = client.get("/")
    assert "connect-src 'self'" in response.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href|url|@import)\s*[=(]\s*[\"']?(?:https?:)?//", response.text)
    assert "prefers-color-scheme: dark" in response.text


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser here")
def test_base_and_adapters_answer_side_by_side_in_a_browser(base, store, monkeypatch, tmp_path):
    monkeypatch.setattr(gate, "OPEN", gate.OPEN | {"/driven"})
    app = app_of(base, store)
    page = next(route for route in app.routes if getattr(route, "path", None) == "/").endpoint

    @app.get("/driven")
    async def driven():
        return HTMLResponse((await page()).body.decode().replace("</body>", SCRIPT))

    with live(app) as server:
        command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
        address = f"http://localhost:{server.port}/driven"
        seen = subprocess.run(
            [*command, "--virtual-time-budget=20000", "--dump-dom", address],
            capture_output=True,
            text=True,
            timeout=120,
        )
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', seen.stdout)[1]))
    ids = plain_ids(base, "abc")
    expected = {
        name: alone(base, store, None if name == "base" else name, ids).text
        for name in ("base", "one", "two")
    }
    assert found["answers"] == expected
    assert all(re.match(r"\d+ tokens · .*(complete|cut at the limit)$", facts) for facts in found["facts"])
    assert found["models"] == ["base", "one", "two"] and found["names"]
    assert found["width"] <= 360
    assert f"curl -N http://localhost:{server.port}/v1/compare" in found["curl"]
    compile(found["python"], "copied", "exec")
