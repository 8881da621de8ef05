"""`manytune generate`: one prompt or a file of them, one or several adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manytune.cli.adapters.arguments import DEFAULT_STORE, Store, stored_names
from manytune.cli.options import AsJson, MovedBase

if TYPE_CHECKING:
    from manytune.cli.chosen import Chosen
    from manytune.cli.outputs.generation import Answered
    from manytune.cli.prompts import Asked
    from manytune.engine.constraints.grammar import Grammar
    from manytune.experiments.answering import Decoding
    from manytune.store.base import Base


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("generate")(generate)


def generate(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The user's message.", show_default=False)
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="A run's or an adapter's directory, or a name in the store; repeatable, for answers side by side.",
            show_default=False,
            autocompletion=stored_names,
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
    base: MovedBase = None,
    store: Store = DEFAULT_STORE,
    json_schema: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A JSON schema that every answer must be valid against.", show_default=False
        ),
    ] = None,
    regex: Annotated[
        str | None,
        typer.Option(
            help="A regular expression that every answer must match as a whole.", show_default=False
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Cut answers at this many tokens.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts to a batch.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Answer with one or more adapters, greedily.

    Fields and rows go through each adapter's own prompt template, so that it is asked as it was trained.
    """
    from manytune.cli.chosen import BASE_NAME, choose, load_common_base
    from manytune.cli.constraint import grammar_of
    from manytune.cli.outputs.generation import print_answers, summary
    from manytune.cli.outputs.json_output import print_json
    from manytune.cli.prompts import prompts_from
    from manytune.experiments.answering import Decoding

    if not adapter:
        raise typer.BadParameter(
            "name a run, or an adapter by its directory or its name in the store", param_hint="--adapter"
        )
    if sum((prompt is not None, bool(field), file is not None)) != 1:
        raise typer.BadParameter("give one of PROMPT, --field and --file")
    if task is not None and prompt is not None:
        raise typer.BadParameter("it chooses a template, and PROMPT goes through none", param_hint="--task")
    grammar = grammar_of(json_schema, regex)
    asked = prompts_from(prompt, field or [], file)
    chosen = choose(adapter, store)
    loaded, chosen = load_common_base(chosen, base)
    decoding = Decoding(max_new_tokens=max_new_tokens, batch_size=batch_size)
    answers: dict[str, list[Answered]] = {}
    if with_base:
        # The base has no template of its own; it is asked as the first adapter is.
        answers[BASE_NAME] = _answers(loaded, None, chosen[0], task, asked, decoding, grammar)
    for one in chosen:
        answers[one.name] = _answers(loaded, one, one, task, asked, decoding, grammar)
    if as_json:
        print_json(summary(asked, answers))
    else:
        print_answers(asked, answers)


def _answers(
    base: Base,
    answering: Chosen | None,
    asking: Chosen,
    task: str | None,
    asked: Sequence[Asked],
    decoding: Decoding,
    grammar: Grammar | None,
) -> list[Answered]:
    """One system's answers to prompts as `asking` was trained on them; `answering` is None for the base itself."""
    from manytune.cli.outputs.generation import Answered
    from manytune.cli.prompts import prompt_of
    from manytune.experiments.answering import answer
    from manytune.experiments.constrained import constraint_of
    from manytune.store.attaching import attached

    encoder = asking.encoder(base, new_tokens=decoding.max_new_tokens)
    prompts = [encoder.prompt_ids(*prompt_of(one, asking, task)) for one in asked]
    constraint = None if grammar is None else constraint_of(grammar, base, encoder)
    decoding = replace(decoding, end_ids=(encoder.end_id,), constraint=constraint)
    path = answering.stored.path if answering else None
    with attached(base, path, activations=(answering or asking).activations) as model:
        generated = answer(model, base.tokenizer, prompts, decoding)
    replies = [encoder.answers.read(one.text) for one in generated]
    return [
        Answered(one.token_ids, reply.content, one.finished, reply.reasoning)
        for one, reply in zip(generated, replies, strict=True)
    ]
