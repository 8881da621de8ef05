"""What commands print in terminals of 60 and 80 columns, as it was last looked at.

`python -m tests.cli.test_outputs_in_two_widths` writes the pages again after a change; look at what changed in them.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from contextlib import chdir
from functools import cache
from pathlib import Path

import pytest
from tests.store.adapters_made import make_adapter
from tests.store.tiny import save_tiny_base
from typer.testing import CliRunner

from manytune.cli.main import build_app
from manytune.store.base import load_base

PAGES = Path(__file__).with_name("output_pages")
WIDTHS = (60, 80)
COMMANDS = """
adapters list
adapters add runs/support-tickets-of-the-second-quarter runs/summaries runs/none
adapters tag summaries production english
adapters alias summaries current
adapters alias support-tickets-of-the-second-quarter current
adapters list
adapters list --wide
adapters list --tag none
adapters show summaries
adapters verify
adapters combine summaries current --name both --weights 0.5,0.5
adapters combine summaries current --name both --weights a
adapters export summaries --to peft --output exported
adapters export summaries --to peft --output exported
adapters show sumaries
adapters add base
adapters remove summaries
adapters remove summaries both --yes
adapters lst
generate --adapter sumaries hello
generate --adapter adapters hello
generate --adapter runs/none hello
generate
chat
evaluate
evaluate support-tickets-of-the-second-quarter
train recipe.yaml --set data.train=[row.jsonl]
train recipe.yaml --set method.name=lroa
train recipe.yaml --set training.lr=1 --set training.epochs=many
train recipe.yaml --set base=./bases/mine
train recipe.yaml --set output=rows.jsonl/run
compare recipe.yaml --set compare.systems=[lora,lroa]
sweep recipe.yaml --ranks 1,x
data check broken.csv
data check rows.jsonl --prompt '{{ question }}' --completion '{{ answer }}'
data check chats.jsonl
data preview rows.jsonl --prompt '{{ question }}' --completion '{{ answer }}' --rows 1
data split rows.jsonl --output parts
data convert chats.jsonl --output converted.jsonl
keys add helpdesk --model support-* --per-minute 60 --concurrent 4 --tenant staff
keys add root --admin
keys list
keys revoke helpdesk
keys revoke nobody
plan base
"""
RECIPE = """
base: base
data: {train: rows.jsonl, test: 0.2, prompt: '{{ question }}', completion: '{{ answer }}'}
"""
# What differs from run to run, and as many other letters.
CHANGING = (
    (re.compile(r"mt-[\w-]{43}"), "mt-" + "k" * 43),
    (re.compile(r"\b\d{4}-\d\d-\d\d(.)\d\d:\d\d:\d\d"), r"2026-11-30\g<1>12:00:00"),
    (re.compile(r"\b\d+ (s|min)$", re.MULTILINE), "0 s"),
    (re.compile(r"objects/[0-9a-f]{2}/[0-9a-f\n ]{60,}"), "objects/00/0000\n"),
    (re.compile(r"\b[0-9a-f]{12}\b"), "0" * 12),
    (re.compile(r"\b[0-9a-f]{30,}\b"), "0" * 30),
)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def prepare(folder: Path) -> None:
    """Put a base, two runs, rows and a recipe into a directory."""
    base = load_base(str(save_tiny_base(folder / "base")))
    for seed, name in enumerate(("summaries", "support-tickets-of-the-second-quarter")):
        made = make_adapter(folder / "runs" / name / "adapter", base, seed=seed)
        manifest = json.loads((made / "manifest.json").read_text())
        (made / "manifest.json").write_text(json.dumps({**manifest, "base": "base"}))
    row = '{"question": "What is the capital of France?", "answer": "Paris."}\n'
    (folder / "rows.jsonl").write_text(row + "".join(row.replace("France", f"land {n}") for n in range(9)))
    (folder / "broken.csv").write_text("question,answer\na,b\nc\nd,e,f\n")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}]
    (folder / "chats.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE)


@cache
def output_pages(width: int) -> str:
    """Every command as it is typed, what it prints, and its exit status if that isn't 0."""
    pages: list[str] = []
    with tempfile.TemporaryDirectory() as folder, chdir(folder), pytest.MonkeyPatch.context() as patch:
        prepare(Path(folder))
        # A terminal of this width, whose colours are taken out again.
        for name, value in {"COLUMNS": str(width), "FORCE_COLOR": "1", "TERM": "xterm"}.items():
            patch.setenv(name, value)
        for name in ("MANYTUNE_STORE", "NO_COLOR"):
            patch.delenv(name, raising=False)
        for line in COMMANDS.strip().splitlines():
            arguments = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", line)]
            found = CliRunner().invoke(build_app(), arguments, prog_name="manytune", terminal_width=width)
            assert isinstance(found.exception, SystemExit | None), line
            text = _COLOURS.sub("", found.output.replace(os.getcwd(), "."))
            for changing, fixed in CHANGING:
                text = changing.sub(fixed, text)
            lines = "\n".join(one.rstrip() for one in text.rstrip().splitlines())
            status = f"\n[exit status {found.exit_code}]" if found.exit_code else ""
            pages.append(f"$ manytune {line}\n{lines}{status}\n".replace("\n\n[", "\n["))
    return "\n".join(pages)


@pytest.mark.parametrize("width", WIDTHS)
def test_commands_print_what_was_looked_at(width: int) -> None:
    assert output_pages(width) == (PAGES / f"{width}.txt").read_text()


@pytest.mark.parametrize("width", WIDTHS)
def test_what_commands_print_fits_the_terminal(width: int) -> None:
    whole = ("$ ", "  ./", "directory: ", "Usage: ")  # paths and commands that are to be copied
    wide = [line for line in output_pages(width).splitlines() if len(line) > width]
    of_wide_lists = ("(UTC)", "12:00:00")
    assert [line for line in wide if not line.startswith(whole) and not line.endswith(of_wide_lists)] == []


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for columns in WIDTHS:
        (PAGES / f"{columns}.txt").write_text(output_pages(columns))
