"""`manytune data`: what is in a file, what the model will see of it, and how to divide it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from manytune.cli.options import AsJson
from manytune.errors import DataError

if TYPE_CHECKING:
    from manytune.data.encode import Encoder
    from manytune.data.length_limit import Overflow
    from manytune.data.recipe import DataRecipe
    from manytune.data.records import Record, Records
    from manytune.data.templates import PromptTemplate

_KINDS = "A .jsonl, .json, .csv, .tsv or .parquet file, or a datasets name like org/name:config."

Files = Annotated[list[str] | None, typer.Argument(metavar="FILE...", help=_KINDS, show_default=False)]
File = Annotated[str | None, typer.Argument(metavar="FILE", help=_KINDS, show_default=False)]
Prompt = Annotated[
    str | None, typer.Option(help="Jinja2 template of the prompt, such as 'Summarize: {{ document }}'.")
]
Completion = Annotated[
    str | None, typer.Option(help="Jinja2 template of the completion, such as '{{ summary }}'.")
]
System = Annotated[str | None, typer.Option(help="Jinja2 template of a system message.")]
Template = Annotated[
    str | None,
    typer.Option(help="A named template or a .yaml or .json file, instead of --prompt and --completion."),
]
Base = Annotated[
    str | None,
    typer.Option(help="The base whose tokens to use: a hub id, a directory, a .gguf file, or embedded."),
]
RecipeFile = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Take files, template, base and length limit from a recipe; FILE and the other options come first.",
    ),
]
Task = Annotated[
    str | None, typer.Option(help="Which task of a recipe that has several.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Check, preview and split training data.")
    group.command("check")(check)
    group.command("preview")(preview)
    group.command("split")(split)
    app.add_typer(group, name="data")


def check(
    files: Files = None,
    prompt: Prompt = None,
    completion: Completion = None,
    system: System = None,
    template: Template = None,
    base: Base = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Count the examples that have more tokens. Needs --base.")
    ] = None,
    recipe: RecipeFile = None,
    task: Task = None,
    as_json: AsJson = False,
) -> None:
    """Examine files: broken rows, empty fields, duplicates, lengths, prompts that two files share.

    Exit status 1 if a row can't be used or a prompt is in two files.
    """
    from manytune.cli.outputs.data import print_check
    from manytune.cli.outputs.json_output import print_json
    from manytune.data.check import check as examine

    plan = _plan(files, recipe, task, base, _chosen(template, prompt, completion, system))
    limit = max_length or (plan.data.max_length if plan.data is not None else None)
    if plan.base is None and limit is not None:
        raise typer.BadParameter("tokens can be counted with a --base only", param_hint="--max-length")
    if plan.template is None and plan.base is not None:
        raise typer.BadParameter("what the model sees needs --prompt and --completion", param_hint="--base")
    sources = {file: _read(file, on_error="skip") for file in plan.files}
    found = examine(sources, template=plan.template, encoder=plan.encoder(limited=False), max_length=limit)
    if as_json:
        print_json({**dataclasses.asdict(found), "passed": found.passed})
    else:
        print_check(found, limit, has_template=plan.template is not None)
    if not found.passed:
        raise typer.Exit(1)


def preview(
    file: File = None,
    prompt: Prompt = None,
    completion: Completion = None,
    system: System = None,
    template: Template = None,
    base: Base = None,
    recipe: RecipeFile = None,
    task: Task = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows to show, from the first.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show what the model will see, with the part that it learns between >>> and <<<."""
    from manytune.cli.outputs.data import print_previews
    from manytune.cli.outputs.json_output import print_json
    from manytune.data.preview import Preview
    from manytune.data.preview import preview as show
    from manytune.data.records import Rejected
    from manytune.data.templates import render_all

    plan = _plan([file] if file else None, recipe, task, base, _chosen(template, prompt, completion, system))
    records = _read(plan.files[0], on_error="skip")
    template_in_use = plan.template or _ask_for_template(records.kept, plan.files[0])
    rendered = render_all(template_in_use, records.kept[:rows], on_error="skip")
    encoder = plan.encoder(limited=True)
    found = [show(example, encoder) for example in rendered.kept]
    shown = [item for item in found if isinstance(item, Preview)]
    refused = [item for item in found if isinstance(item, Rejected)]
    left_out = sorted((*records.rejected, *rendered.rejected, *refused), key=lambda row: row.row)
    if as_json:
        print_json({"shown": _as_dicts(shown), "rejected": _as_dicts(left_out)})
    else:
        print_previews(shown, left_out, has_base=encoder is not None)


def split(
    files: Files = None,
    output: Annotated[
        Path | None, typer.Option(help="Directory to create; FILE's name with -split if not given.")
    ] = None,
    validation: Annotated[float, typer.Option(min=0, max=1, help="Share of the rows; 0 for none.")] = 0.1,
    test: Annotated[float, typer.Option(min=0, max=1, help="Share of the rows; 0 for none.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Another seed gives another division.")] = 0,
    group_by: Annotated[
        str | None, typer.Option(help="A field; rows that share its value stay in one split.")
    ] = None,
    prompt: Prompt = None,
    completion: Completion = None,
    template: Template = None,
    on_error: Annotated[
        Literal["error", "skip"], typer.Option(help="What becomes of rows that can't be used.")
    ] = "error",
    as_json: AsJson = False,
) -> None:
    """Write a file's rows as train.jsonl, validation.jsonl and test.jsonl into a new directory.

    Rows stay together that share --group-by's field, or else their prompt if there is a template, or else
    everything. Where a row goes depends on its content and the seed, not on the order of the rows.
    """
    from manytune.atomic import atomic_directory
    from manytune.cli.outputs.data import print_split
    from manytune.cli.outputs.json_output import print_json
    from manytune.data.json_files import json_line
    from manytune.data.splits import split as divide

    plan = _plan(files, None, None, None, _chosen(template, prompt, completion, None, group_by))
    read = [_read(file, on_error=on_error) for file in plan.files]
    keyed, left_out = _keyed(
        [record for records in read for record in records.kept], plan.template, group_by, on_error
    )
    left_out = [*(row for records in read for row in records.rejected), *left_out]
    shares = {"train": 1 - validation - test, "validation": validation, "test": test}
    parts = divide(
        keyed,
        {name: share for name, share in shares.items() if share or name == "train"},
        key=lambda pair: pair[1],
        seed=seed,
    )
    target = output or Path(f"{Path(plan.files[0]).stem}-split")
    with atomic_directory(target) as directory:
        for name, pairs in parts.items():
            (directory / f"{name}.jsonl").write_text(
                "".join(json_line(record) for record, _ in pairs), "utf-8"
            )
    written = {str(target / f"{name}.jsonl"): len(pairs) for name, pairs in parts.items()}
    if as_json:
        print_json({"rows": written, "rejected": _as_dicts(left_out)})
    else:
        print_split(written, left_out)


@dataclass(frozen=True)
class _Plan:
    """What the options and the recipe say together."""

    files: tuple[str, ...]
    template: PromptTemplate | None
    base: str | None
    data: DataRecipe | None = None

    def encoder(self, *, limited: bool) -> Encoder | None:
        """The base's encoder; without the length limit if every example is to be measured."""
        if self.base is None:
            return None
        from manytune.data.encode import Encoder
        from manytune.store.base import is_encoder_decoder, load_tokenizer

        tokenizer, seq2seq = load_tokenizer(self.base), is_encoder_decoder(self.base)
        if self.data is None:
            return Encoder(tokenizer, max_length=None, encoder_decoder=seq2seq)
        # A look at the data stops at no row.
        overflow: Overflow = "drop" if self.data.overflow == "error" else self.data.overflow
        return self.data.encoder(tokenizer, encoder_decoder=seq2seq, limited=limited, overflow=overflow)


def _chosen(
    template: str | None,
    prompt: str | None,
    completion: str | None,
    system: str | None,
    group_by: str | None = None,
) -> PromptTemplate | None:
    from manytune.data.templates import choose_template

    return choose_template(template, prompt=prompt, completion=completion, system=system, group_by=group_by)


def _plan(
    files: Sequence[str] | None,
    recipe: str | None,
    task: str | None,
    base: str | None,
    template: PromptTemplate | None,
) -> _Plan:
    if recipe is None:
        if task is not None:
            raise typer.BadParameter("tasks are those of a --recipe", param_hint="--task")
        if not files:
            raise typer.BadParameter("name at least one file, or a --recipe", param_hint="FILE")
        return _Plan(tuple(files), template, base)
    from manytune.training.recipe import load_recipe

    loaded = load_recipe(recipe)
    data = loaded.data
    train, validation, test, templates = _rows_of(data, task)
    by_role = {"train": train, "validation": (validation,), "test": (test,)}
    named = tuple(
        spec if Path(spec).is_file() or spec.endswith("]") else f"{spec}[{role}]"
        for role, specs in by_role.items()
        for spec in specs
        if isinstance(spec, str)
    )
    if template is None and len(templates) > 1:
        listed = ", ".join(map(repr, templates))
        raise typer.BadParameter(f"choose one of the recipe's templates: {listed}", param_hint="--task")
    return _Plan(
        files=tuple(files) if files else named,
        template=template or next(iter(templates.values())),
        base=base or loaded.base,
        data=data,
    )


def _rows_of(
    data: DataRecipe, task: str | None
) -> tuple[Sequence[str], float | str | None, float | str | None, dict[str | None, PromptTemplate]]:
    """The rows for training, validation and test of a recipe or of one of its tasks, and their templates."""
    if not data.tasks:
        if task is not None:
            raise typer.BadParameter("the recipe has a single task", param_hint="--task")
        return data.files, data.validation, data.test, {None: data.prompt_template()}
    for one in data.tasks:
        templates = one.prompt_templates()
        if task == one.name or task in templates:
            chosen = {name: found for name, found in templates.items() if task in (name, one.name)}
            return one.file, one.validation, one.test, dict(chosen.items())
    raise typer.BadParameter(
        f"choose one of the recipe's tasks: {', '.join(data.task_templates())}", param_hint="--task"
    )


def _as_dicts(items: Sequence[Any]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(item) for item in items]


def _read(file: str, *, on_error: Literal["error", "skip"]) -> Records:
    from manytune.data.readers import read

    return read(file, on_error=on_error)


def _keyed(
    records: Sequence[Record],
    template: PromptTemplate | None,
    group_by: str | None,
    on_error: Literal["error", "skip"],
) -> tuple[list[tuple[Record, str]], list[Any]]:
    """Pair each record with the key of its group; and the rows that the template doesn't fit."""
    from manytune.data.splits import group_key, record_key
    from manytune.data.templates import render_all

    if template is None:
        return [(record, record_key(record, group_by)) for record in records], []
    rendered = render_all(template, records, on_error=on_error)
    keys = {example.where: group_key(example) for example in rendered.kept}
    return [(record, keys[record.where]) for record in records if record.where in keys], list(
        rendered.rejected
    )


def _ask_for_template(records: Sequence[Record], file: str) -> PromptTemplate:
    fields = ", ".join(records[0].fields) if records else "none"
    raise DataError(
        "say how a row becomes a prompt and a completion: --prompt 'Summarize: {{ document }}' "
        f"--completion '{{{{ summary }}}}', or --template. The rows have the fields {fields}",
        where=file,
    )
