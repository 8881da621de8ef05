"""What `manytune evaluate` does with answers that were made elsewhere: files of them, and models behind an address."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

import typer

from manytune.cli.options import check_place
from manytune.errors import DataError

if TYPE_CHECKING:
    from manytune.data.templates import Example
    from manytune.evaluation.answer_files import GivenAnswer
    from manytune.evaluation.evaluate import System
    from manytune.evaluation.results import Answer, Item

Answers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]FILE",
        help="Answers that were made elsewhere, a row each, or lm-evaluation-harness's samples_*.jsonl; repeatable. "
        "Rows are matched by `id`, or by their order. Without runs the others are compared with the first.",
        show_default=False,
    ),
]
AnswerField = Annotated[
    str | None,
    typer.Option(
        help="The field with an answer's text, if it isn't clear; of the harness's samples, the filter.",
        show_default=False,
    ),
]
Score = Annotated[
    str | None,
    typer.Option(
        help="Of the harness's samples, the score that the metric `recorded` takes, such as acc_norm.",
        show_default=False,
    ),
]
EndpointUrl = Annotated[
    str | None,
    typer.Option(
        help="Ask an OpenAI-compatible server, such as http://localhost:8000/v1.", show_default=False
    ),
]
Models = Annotated[
    list[str] | None, typer.Option("--model", help="A model of --endpoint; repeatable.", show_default=False)
]
Api = Annotated[
    Literal["chat", "completions"],
    typer.Option(help="How --endpoint is asked: with messages, or with the prompt's text alone."),
]
KeyFrom = Annotated[
    str,
    typer.Option(
        metavar="VARIABLE", help="The environment variable that has --endpoint's API key, if it is set."
    ),
]
Concurrency = Annotated[int, typer.Option(min=1, max=256, help="Requests to --endpoint at once.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds that a reply of --endpoint may take.")]
Retries = Annotated[
    int,
    typer.Option(
        min=0, max=20, help="How often a request is sent again if --endpoint is busy or unreachable."
    ),
]
Record = Annotated[
    Path | None,
    typer.Option(
        help="Where --endpoint's answers are recorded as they come; started again, only the others are asked for. "
        "Without it, MODEL.answers.jsonl.",
        show_default=False,
    ),
]
PromptText = Annotated[
    str | None,
    typer.Option("--prompt", help="Without runs: --data's prompt, a Jinja2 template.", show_default=False),
]
CompletionText = Annotated[
    str | None,
    typer.Option(
        "--completion", help="Without runs: --data's right answer, a Jinja2 template.", show_default=False
    ),
]
FromRecipe = Annotated[
    Path | None,
    typer.Option("--recipe", help="Without runs: the recipe whose test rows are asked.", show_default=False),
]


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Systems whose answers aren't made here.

    Attributes:
        answers: Files, each perhaps with a name.
        field: See the options; so for all others.
    """

    answers: Sequence[str]
    field: str | None
    score: str | None
    endpoint: str | None
    models: Sequence[str]
    api: Literal["chat", "completions"]
    key_from: str
    concurrency: int
    timeout: float
    retries: int
    record: Path | None
    max_tokens: int

    def __bool__(self) -> bool:
        return bool(self.answers) or self.endpoint is not None

    def check(self) -> None:
        """See that the options fit together."""
        if (self.endpoint is None) != (not self.models):
            raise typer.BadParameter("--endpoint and --model go together", param_hint="--endpoint")
        if self.record is not None and len(self.models) != 1:
            raise typer.BadParameter("it holds one model's answers", param_hint="--record")

    def alone(self) -> tuple[tuple[Item, ...], list[System]]:
        """Files that say themselves what was asked, and what is right.

        Raises:
            DataError: A file doesn't say so, or they differ in it.
        """
        from manytune.evaluation.answer_files import items_of

        files = self._files()
        items, answers = items_of([given for _, given in files])
        return items, [_system(name, found) for (name, _), found in zip(files, answers, strict=True)]

    def systems(
        self, asked: Sequence[Sequence[Example]], *, taken: Sequence[str], partial: bool
    ) -> list[System]:
        """Every system's answers to what was asked.

        Args:
            asked: The rows of each prompt.
            taken: Names of other systems.
            partial: Whether a file may have answers to other rows, too.

        Raises:
            DataError: A file's answers don't fit the rows.
            RequestError: The server doesn't answer.
        """
        from manytune.evaluation.answer_files import match

        if not self:
            return []
        found = [_system(name, match(given, asked, partial=partial)) for name, given in self._files()]
        if any(rows[0].is_document for rows in asked):
            raise DataError("running text is read by a base, and no answers to it can be compared")
        for model in self.models:
            names = [*taken, *(system.name for system in found)]
            name = f"{model} at {urlsplit(self.endpoint or '').netloc}" if model in names else model
            found.append(self._asked(name, model, [rows[0] for rows in asked]))
        return found

    def _files(self) -> list[tuple[str, tuple[GivenAnswer, ...]]]:
        from manytune.evaluation.answer_files import read_answers

        named = [_named(text) for text in self.answers]
        stems = [name for name, _ in named]
        return [
            (
                f"{path.parent.name}/{name}" if stems.count(name) > 1 else name,
                read_answers(path, field=self.field, score=self.score),
            )
            for name, path in named
        ]

    def _asked(self, name: str, model: str, rows: Sequence[Example]) -> System:
        from rich.console import Console

        from manytune.cli.outputs.progress import CommandProgress
        from manytune.experiments.answer_journal import AnswerJournal
        from manytune.experiments.endpoint import Endpoint
        from manytune.experiments.trials import slug

        endpoint = Endpoint(
            url=self.endpoint or "",
            model=model,
            api=self.api,
            max_tokens=self.max_tokens,
            key=os.environ.get(self.key_from) or None,
            timeout=self.timeout,
            retries=self.retries,
            concurrency=self.concurrency,
        )
        path = self.record or Path(f"{slug(model)}.answers.jsonl")
        check_place("--record", path)
        address = endpoint.address
        with CommandProgress(Console(stderr=True)) as progress:
            answers = endpoint.ask(
                rows,
                AnswerJournal(path),
                notice=lambda what, done, total: progress.answering(f"{name}: {what}", done, total),
            )
        return _system(name, answers, {"Model": model, "Address": address, "Recorded in": str(path)})


def rows_elsewhere(
    data: str | None, prompt: str | None, completion: str | None, recipe: Path | None
) -> tuple[Example, ...] | None:
    """The rows that are asked where no run says which; None if nothing does, so that the answers have to."""
    from manytune.data.dataset import read_splits
    from manytune.data.readers import read_role
    from manytune.data.templates import PromptTemplate, render_all
    from manytune.training.recipe import outline_from, read_mapping

    if recipe is not None:
        if data or prompt or completion:
            raise typer.BadParameter("it names rows and templates itself", param_hint="--recipe")
        found = read_splits(outline_from(read_mapping(recipe), where=str(recipe)).data).test
        if not found:
            raise DataError(f"{recipe} sets no test rows aside (data.test)")
        return found
    if data is None:
        if prompt or completion:
            raise typer.BadParameter("name the rows, too", param_hint="--data")
        return None
    if prompt is None or completion is None:
        raise typer.BadParameter(
            "without a run, give --prompt and --completion, such as '{{ question }}' and '{{ answer }}', or --recipe",
            param_hint="--data",
        )
    return render_all(PromptTemplate(prompt, completion), read_role(data, "test").kept).kept


def _named(text: str) -> tuple[str, Path]:
    """A name and a file; a file alone is called by its stem."""
    name, equals, path = text.partition("=")
    if equals and name and "/" not in name:
        return name, Path(path)
    return Path(text).stem.removesuffix(".answers"), Path(text)


def _system(name: str, answers: tuple[Answer, ...], facts: dict[str, str] | None = None) -> System:
    from manytune.evaluation.evaluate import System

    return System(name, "elsewhere", answers, provenance=facts or {})
