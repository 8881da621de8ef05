"""`docs/troubleshooting.md`: each mistake is made, and its message written down.

`python -m tests.mistakes.page` writes the page.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import html
import os
import re
import shlex
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn
from unittest.mock import patch

import tests.conftest  # noqa: F401 - no hub is asked, and nothing waits for the disk
from starlette.testclient import TestClient
from tests.mistakes.data_mistakes import DATA
from tests.mistakes.mistake import RECIPE, Asked, Mistake
from tests.mistakes.other_mistakes import ADAPTERS, DISK, EVALUATION, KEYS, PLANS, REQUESTS, SERVER
from tests.mistakes.recipe_mistakes import RECIPES
from tests.server.world import app_of, save_base
from tests.store.adapters_made import make_adapter
from tests.store.tiny import save_tiny_base
from typer.testing import CliRunner

from manytune.cli.main import build_app
from manytune.server.access.auth import Key, Keys
from manytune.store.base import load_base
from manytune.store.store import AdapterStore

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
SECTIONS = {
    "Data": DATA,
    "Recipes": RECIPES,
    "Adapters": ADAPTERS,
    "Evaluation": EVALUATION,
    "Plans": PLANS,
    "Server": SERVER,
    "Keys": KEYS,
    "Disk": DISK,
}
_HEAD = """\
# Troubleshooting

What is easily got wrong, and what manytune says then. Every mistake that a user can make and mend is a sentence with
the place and the next step, and exit status 1 (2 for wrong usage). A traceback is a defect of manytune; please report
it.

The messages on this page are those of the program: a test makes each mistake.
"""
_WHERE = {errno.ENOSPC: "os.fsync"}
"""What fails with an error of the disk's; for others it is the making of a directory."""
Answer = tuple[str, str, str]
"""The mistake, the message, and the part of it that says what to do."""


def all_answers(folder: Path) -> dict[str, list[Answer]]:
    """What is answered to every mistake, by section of the page."""
    _build(folder / "world")
    found = {title: [_answer(folder, one) for one in mistakes] for title, mistakes in SECTIONS.items()}
    found["Server"] += _answers_of_a_server(folder)
    return found


_app = functools.cache(build_app)


def _build(world: Path) -> None:
    save_tiny_base(world / "base")
    with contextlib.chdir(world):  # so that what is made names its base as a user would, and finds it
        _fill(world)


def _fill(world: Path) -> None:
    base = load_base("base")
    save_tiny_base(world / "base2", seed=1)
    (world / "train.csv").write_text(
        "question,answer\n" + "".join(f"what is {c},{c}\n" for c in "abcdefghijkl")
    )
    (world / "recipe.yaml").write_text(RECIPE)
    done = make_adapter(world / "runs" / "done" / "adapter", base)
    for name in ("done", "begun"):
        (world / "runs" / name).mkdir(exist_ok=True)
        (world / "runs" / name / "recipe.yaml").write_text(RECIPE)
        (world / "runs" / name / "environment.json").write_text(
            '{"manytune": "", "packages": {}, "started": ""}'
        )
    (world / "runs" / "done" / "scores.json").write_text("{}")
    make_adapter(world / "other", base, seed=1)
    AdapterStore(world / "adapters").add(done, name="support")
    shutil.copytree(done, world / "damaged")
    file = world / "damaged" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def _answer(folder: Path, mistake: Mistake) -> Answer:
    work = folder / "work"
    shutil.copytree(folder / "world", work)
    try:
        return mistake.what, _message(work, mistake), mistake.next_step
    finally:
        shutil.rmtree(work)


def _message(work: Path, mistake: Mistake) -> str:
    recipe = RECIPE
    for before, after in mistake.recipe.items():
        assert before in recipe, mistake.what
        recipe = recipe.replace(before, after)
    (work / "recipe.yaml").write_text(recipe)
    for name, content in mistake.files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with contextlib.ExitStack() as stack:
        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        stack.enter_context(patch.dict(os.environ, {**mistake.environment, "COLUMNS": "5000"}))
        stack.enter_context(contextlib.chdir(work))
        if mistake.disk is not None:
            stack.enter_context(patch(_WHERE.get(mistake.disk, "os.mkdir"), _failing(mistake.disk)))
        words = shlex.split(mistake.command.replace("{port}", str(taken)))
        result = CliRunner().invoke(_app(), words)
    assert result.exit_code in (1, 2), (mistake.what, result.output, result.exception)
    assert isinstance(result.exception, SystemExit), (mistake.what, result.exception)
    lines = result.stderr.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(("error: ", "Error: ")))
    said = "\n".join(lines[start:])[len("error: ") :].replace(str(taken), "8000")
    said = re.sub(r"[\d,]+ MiB are free|up to [\d,]+ would fit", _without_number, said)  # of this machine
    return re.sub(r"\b[0-9a-f]{12}\b", "…", said)  # hashes, which differ between releases of libraries


def _without_number(found: re.Match[str]) -> str:
    return re.sub(r"[\d,]+", "…", found[0])


def _failing(number: int) -> Callable[..., NoReturn]:
    def fail(path: object, *_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number), path if isinstance(path, str) else None)

    return fail


def _answers_of_a_server(folder: Path) -> list[Answer]:
    base = save_base(folder / "served")
    key = Key(name="mine", sha256=hashlib.sha256(b"secret").hexdigest())
    app = app_of(base, AdapterStore(folder / "world" / "adapters"), Keys([key]))
    with TestClient(app, base_url="http://localhost") as client:
        return [(one.what, _refusal(client, one), one.next_step) for one in REQUESTS]


def _refusal(client: TestClient, asked: Asked) -> str:
    headers = {} if asked.key is None else {"Authorization": f"Bearer {asked.key}"}
    if asked.body is None:
        reply = client.get("/v1/adapters", headers=headers)
    else:
        reply = client.post("/v1/chat/completions", json=asked.body, headers=headers)
    assert 400 <= reply.status_code < 500, (asked.what, reply.text)
    return f"{reply.status_code}: {reply.json()['error']['message']}"


def render(answers: dict[str, list[Answer]]) -> str:
    """The page."""
    lines = [_HEAD]
    for title, section in answers.items():
        lines += [f"## {title}", "", "| mistake | message |", "|---|---|"]
        lines += [
            f"| {_cell(what)} | {'<br>'.join(map(_code, message.splitlines()))} |"
            for what, message, _ in section
        ]
        lines.append("")
    return "\n".join(lines)


def _code(line: str) -> str:
    if not set(line) & set("`|"):
        return f"`{line}`"
    marks = {ord(mark): f"&#{ord(mark)};" for mark in "`|*_[]\\{}"}  # what Markdown would read otherwise
    return f"<code>{html.escape(line, quote=False).translate(marks)}</code>"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        PAGE.write_text(render(all_answers(Path(directory))))
