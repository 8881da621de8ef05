"""The pages need nothing but their server; a real browser asks, compares, loads and pins with them."""

import asyncio
import hashlib
import html
import json
import re
import shutil
import subprocess

import pytest
from fastapi.responses import HTMLResponse
from tests.server.live import live
from tests.server.world import alone, app_of, plain_ids

from manytune.server.auth import Key, Keys

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


@pytest.mark.parametrize("path", ["/", "/operator"])
def test_a_page_loads_nothing_from_elsewhere(client, path):
    response = client.get(path)
    assert "connect-src 'self'" in response.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href|url|@import)\s*[=(]\s*[\"']?(?:https?:)?//", response.text)
    assert "prefers-color-scheme: dark" in response.text


# As an operator would; the width is that of a phone.
OPERATOR = """<script>
const wait = async (holds) => { while (!holds()) await new Promise((done) => setTimeout(done, 20)); };
addEventListener("load", async () => {
  const found = {}, state = () => document.querySelector("tbody tr td:nth-child(4)").textContent;
  $("form").requestSubmit();
  await wait(() => $("state").classList.contains("wrong"));
  found.denied = $("state").textContent;
  $("key").value = "root";
  $("form").requestSubmit();
  await wait(() => document.querySelector("tbody tr"));
  found.rows = [...document.querySelectorAll("tbody th")].map((head) => head.textContent);
  found.states = [state()];
  for (const verb of ["load", "pin", "unload", "unpin", "unload", "verify"]) {
    say("");
    document.querySelector(`[aria-label="${verb} one"]`).click();
    await wait(() => $("state").textContent);
    found.states.push(state());
  }
  found.said = $("state").textContent;
  document.body.style.width = "360px";
  found.width = document.querySelector("main").scrollWidth;
  document.body.dataset.found = JSON.stringify(found);
});
</script></body>"""


def with_page(app, address, content):
    """The application with one more page, which needs no key."""

    async def wrapped(scope, receive, send):
        if scope["type"] == "http" and scope["path"] == address:
            await HTMLResponse(content)(scope, receive, send)
        else:
            await app(scope, receive, send)

    return wrapped


def driven(app, path, script, folder):
    """What a browser sees that opens a page with a script added to it."""
    endpoint = next(route for route in app.routes if getattr(route, "path", None) == path).endpoint
    content = asyncio.run(endpoint()).body.decode().replace("</body>", script)
    with live(with_page(app, "/driven", content)) as server:
        command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
        address = f"http://localhost:{server.port}/driven"
        seen = subprocess.run(
            [*command, "--virtual-time-budget=20000", "--dump-dom", address],
            capture_output=True,
            text=True,
            timeout=120,
        )
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', seen.stdout)[1]))
    return found, f"http://localhost:{server.port}"


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser here")
def test_base_and_adapters_answer_side_by_side_in_a_browser(base, store, tmp_path):
    found, address = driven(app_of(base, store), "/", SCRIPT, tmp_path)
    ids = plain_ids(base, "abc")
    models = {"base": None, "one": "one", "two": "two"}
    assert found["answers"] == {
        name: alone(base, store, adapter, ids).text for name, adapter in models.items()
    }
    assert all(re.match(r"\d+ tokens · .*(complete|cut at the limit)$", facts) for facts in found["facts"])
    assert found["models"] == list(models) and found["names"]
    assert found["width"] <= 360
    assert f"curl -N {address}/v1/compare" in found["curl"]
    compile(found["python"], "copied", "exec")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser here")
def test_an_operator_loads_pins_and_verifies_in_a_browser(base, store, tmp_path):
    keys = Keys([Key(name="root", sha256=hashlib.sha256(b"root").hexdigest(), admin=True)])
    found, _ = driven(app_of(base, store, keys), "/operator", OPERATOR, tmp_path)
    assert "needs an API key" in found["denied"]
    assert found["rows"] == ["one", "two"]
    pinned_stays = ["on disk", "in memory", "pinned", "pinned", "in memory", "on disk", "on disk"]
    assert found["states"] == pinned_stays
    assert found["said"] == "one is sound: 2 files, 8 tensors."
    assert found["width"] <= 360
