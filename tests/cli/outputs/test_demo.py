"""What `manytune demo` prints at its end."""

import shlex
import sys

import pytest

from manytune.cli.outputs.demo import _command_lines, _program


def test_a_long_command_is_broken_so_that_a_shell_takes_it_as_one() -> None:
    words = ["manytune", "generate", "--adapter", "runs/demo/lora", "--file", "my rows/unseen.jsonl"]
    lines = _command_lines(words, width=40)
    assert lines == [
        "  manytune generate --adapter \\",
        "      runs/demo/lora --file \\",
        "      'my rows/unseen.jsonl'",
    ]
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == words


@pytest.mark.parametrize(
    ("found", "called", "expected"),
    [
        ("/bin/manytune", "anything", ["manytune"]),
        (None, "/site/manytune/__main__.py", [sys.executable, "-m", "manytune"]),
        (None, "/venv/bin/manytune", ["/venv/bin/manytune"]),
    ],
)
def test_what_to_type_next_starts_with_what_can_be_called(
    monkeypatch: pytest.MonkeyPatch, found: str | None, called: str, expected: list[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: found)
    monkeypatch.setattr("sys.argv", [called])
    assert _program() == expected
