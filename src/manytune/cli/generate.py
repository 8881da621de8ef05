"""`manytune generate`: one prompt or a file of them, several adapters side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from manytune.cli.adapted import Chosen
    from manytune.data.templates import Segment
    from manytune.engine.static_batch import Generation
    from manytune.store.base import Base


@dataclass(frozen=True)
class _Asked:
    """One prompt as the user gave it: words for every system, or fields for each adapter's own template."""

    where: str
    text: str | None
    fields: Mapping[str, object]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("generate")(generate)


def generate(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The user's message.", show_default=False)
    ] = None,
    adapter: Annotated[
        list[Path] | None,
        typer.Option(
            help="A run or adapter directory; several for their answers side by side.", show_default=False
        ),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A field for the adapter's own prompt template, instead of PROMPT.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(help="Rows with the fields of the adapter's own prompt template, instead of PROMPT."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Whose template, for an adapter trained on several tasks.", show_default=False),
    ] = None,
    with_base: Annotated[
        bool, typer.Option("--with-base", help="Show the untouched base's answers too.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            help="The base, if it isn't where it was: a hub id, a directory, a .gguf file, or embedded."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Cut answers at this many tokens.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts to a batch.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Answer with one or more adapters, greedily.

    Fields and rows go through each adapter's own prompt template, so that it is asked as it was trained.
    """
    from manytune.cli.adapted import BASE_NAME, choose, load_common_base

    if not adapter:
        raise typer.BadParameter("name at least one run or adapter directory", param_hint="--adapter")
    if sum((prompt is not None, bool(field), file is not None)) != 1:
        raise typer.BadParameter("give one of PROMPT, --field and --file")
    if task is not None and prompt is not None:
        raise typer.BadParameter("it chooses a template, and PROMPT goes through none", param_hint="--task")
    asked = _asked(prompt, field or [], file)
    chosen = choose(adapter)
    loaded = load_common_base(chosen, base)
    answers: dict[str, list[Generation]] = {}
    if with_base:
        # The base has no template of its own; it is asked as the first adapter is.
        answers[BASE_NAME] = _answer(loaded, None, chosen[0], task, asked, max_new_tokens, batch_size)
    for one in chosen:
        answers[one.name] = _answer(loaded, one, one, task, asked, max_new_tokens, batch_size)
    if as_json:
        _print_json(asked, answers)
    else:
        _print(asked, answers)


def _asked(prompt: str | None, fields: Sequence[str], file: str | None) -> list[_Asked]:
    from manytune.data.readers import read

    if prompt is not None:
        return [_Asked("prompt", prompt, {})]
    if file is not None:
        split = None if Path(file).expanduser().is_file() else "test"
        return [_Asked(record.where, None, record.fields) for record in read(file, split=split).kept]
    values = {}
    for text in fields:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"expected NAME=VALUE, found {text!r}", param_hint="--field")
        values[name] = value
    return [_Asked("fields", None, values)]


def _answer(
    base: Base,
    answering: Chosen | None,
    asking: Chosen,
    task: str | None,
    asked: Sequence[_Asked],
    max_new_tokens: int,
    batch_size: int,
) -> list[Generation]:
    """One system's answers: `answering` replies to prompts made as for `asking`."""
    from manytune.engine.answering import answer_prompts
    from manytune.store.attaching import attached

    encoder = asking.encoder(base)
    prompts = [encoder.prompt_ids(_segments(asking, task, one)) for one in asked]
    with attached(base, answering.stored.path if answering else None) as model:
        return answer_prompts(
            model,
            base.tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            end_ids=[encoder.end_id],
        )


def _segments(asking: Chosen, task: str | None, one: _Asked) -> tuple[Segment, ...]:
    from manytune.data.templates import Segment
    from manytune.errors import TemplateError

    if one.text is not None:
        return (Segment("user", one.text),)
    try:
        return asking.template(task).render_prompt(one.fields)
    except TemplateError as error:
        raise TemplateError(f"{asking.name}'s template: {error}", where=one.where) from error


def _print_json(asked: Sequence[_Asked], answers: Mapping[str, Sequence[Generation]]) -> None:
    from manytune.cli.outputs.data import print_json

    print_json(
        [
            {
                "where": one.where,
                "prompt": one.text,
                "answers": [{"system": name, **asdict(given[place])} for name, given in answers.items()],
            }
            for place, one in enumerate(asked)
        ]
    )


def _print(asked: Sequence[_Asked], answers: Mapping[str, Sequence[Generation]]) -> None:
    """Bare text for one answer, so that it can be piped; headings where there are several."""
    from rich.console import Console
    from rich.rule import Rule
    from rich.text import Text

    if len(asked) == len(answers) == 1:
        (given,) = answers.values()
        typer.echo(given[0].text.strip())
        return
    console = Console(highlight=False)
    for place, one in enumerate(asked):
        if len(asked) > 1:
            console.print(Rule(Text(one.where), align="left", characters="─"))
        for name, given in answers.items():
            answer = given[place]
            heading = Text(name, "bold")
            if answer.finished == "length":
                heading.append(" (cut at the limit)", "not bold dim")
            console.print(heading)
            console.print(Text(answer.text.strip()))
            console.print()
