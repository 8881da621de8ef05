"""How `manytune generate` prints answers, for people and for programs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import typer
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from manytune.terminal import visible

if TYPE_CHECKING:
    from manytune.cli.prompts import Asked


@dataclass(frozen=True)
class Answered:
    """One system's answer to one prompt.

    Attributes:
        token_ids: The generated tokens, without the end token.
        text: The answer in them: without what the chat template writes around it, and without reasoning.
        finished: `"stop"` if the model ended it, `"length"` if it was cut at the limit.
        reasoning: What the model wrote before the answer; empty for nothing.
    """

    token_ids: tuple[int, ...]
    text: str
    finished: Literal["stop", "length"]
    reasoning: str


def summary(asked: Sequence[Asked], answers: Mapping[str, Sequence[Answered]]) -> list[dict[str, Any]]:
    """Each prompt with every system's answer."""
    return [
        {
            "where": one.where,
            "prompt": one.text,
            "answers": [{"system": name, **asdict(given[place])} for name, given in answers.items()],
        }
        for place, one in enumerate(asked)
    ]


def print_answers(asked: Sequence[Asked], answers: Mapping[str, Sequence[Answered]]) -> None:
    """Bare text for one answer, so that it can be piped; headings where there are several."""
    if len(asked) == len(answers) == 1:
        (given,) = answers.values()
        text = given[0].text.strip()
        typer.echo(visible(text) if sys.stdout.isatty() else text)  # a file or a pipe gets what was written
        return
    console = Console(highlight=False)
    for place, one in enumerate(asked):
        if len(asked) > 1:
            console.print(Rule(Text(visible(one.where)), align="left", characters="─"))
        for name, given in answers.items():
            answer = given[place]
            heading = Text(visible(name), "bold")
            if answer.finished == "length":
                heading.append(" (cut off at the length limit)", "not bold dim")
            console.print(heading)
            text = visible(answer.text.strip())
            console.print(Text(text) if text else Text("(empty)", "dim"))
            console.print()
