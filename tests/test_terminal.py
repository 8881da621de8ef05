"""What others wrote can't steer a terminal, wherever manytune shows it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tests.store.adapters_made import make_adapter
from tests.store.tiny import save_tiny_base
from typer.testing import CliRunner

from manytune.cli.main import build_app
from manytune.server.logs import JsonLines
from manytune.store.base import load_base
from manytune.terminal import visible, visible_json

STEERING = [
    "\x1b[2J",  # clears the screen
    "\x1b]52;c;cm0gLXJm\x07",  # fills the clipboard
    "\x9b31m",  # the same as ESC [ in one character
    "\x08\x08\x08",
    "a\rb",
    "\x7f",
    "\u202egpj.exe",
    "\u2066x\u2069",
]


@pytest.mark.parametrize("text", STEERING)
def test_what_steers_a_terminal_is_shown_as_its_escape(text: str) -> None:
    shown = visible(f"é ض 日本\n\t{text}")
    assert shown.startswith("é ض 日本\n\t") and shown.removeprefix("é ض 日本\n\t").isprintable()
    document = json.dumps({"a": text}, ensure_ascii=False)
    assert visible_json(document).isprintable() and json.loads(visible_json(document)) == {"a": text}


def test_adapters_and_logs_show_it_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(str(save_tiny_base(tmp_path / "base")))
    adapter = make_adapter(tmp_path / "adapter", base)
    evil = "".join(STEERING)
    manifest = json.loads((adapter / "manifest.json").read_text())
    manifest |= {
        "base": f"[red]{evil}",
        "template": {"prompt": f"{{{{ text }}}}{evil}", "completion": "{{ answer }}"},
    }
    manifest["scores"] = {evil: 1.0}
    (adapter / "manifest.json").write_text(json.dumps(manifest))
    store = str(tmp_path / "store")
    calls = [
        ["add", str(adapter), "--name", "one", "--store", store],
        ["list", "--store", store, "--wide"],
        ["list", "--store", store],
        ["show", "one", "--store", store],
        ["list", "--store", store, "--json"],
        ["show", str(adapter)],
        ["show", f"no-such-{evil}", "--store", store],
    ]
    for arguments in calls:
        result = CliRunner().invoke(build_app(), ["adapters", *arguments])
        written = result.output.replace("\n", "").replace("\t", "")
        assert written.isprintable(), (arguments, written)
        if (
            arguments[0] != "add"
            and arguments != ["list", "--store", store]
            and "no-such" not in arguments[1]
        ):
            assert "[red]" in written, arguments
    record = logging.LogRecord("manytune", logging.INFO, "", 0, evil, (), None)
    assert (
        JsonLines().format(record).isprintable() and json.loads(JsonLines().format(record))["message"] == evil
    )
