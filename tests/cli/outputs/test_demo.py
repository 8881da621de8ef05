"""What `manytune demo` prints at its end."""

import shlex

from manytune.cli.outputs.demo import _command_lines


def test_a_long_command_is_broken_so_that_a_shell_takes_it_as_one() -> None:
    words = ["manytune", "generate", "--adapter", "runs/demo/lora", "--file", "my rows/unseen.jsonl"]
    lines = _command_lines(words, width=40)
    assert lines == [
        "  manytune generate --adapter \\",
        "      runs/demo/lora --file \\",
        "      'my rows/unseen.jsonl'",
    ]
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == words
