"""`manytune data`: what is in a file, what the model will see of it, and how to divide it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from manytune.atomic import atomic_directory, atomic_write, require_absent
from manytune.cli.command_line import CommandLine
from manytune.cli.data_cache import cache
from manytune.cli.data_rows import ask_for_form, ask_for_template, chosen_template, plan_rows_of
from manytune.cli.options import AsJson
from manytune.errors import DataError

if TYPE_CHECKING:
    from manytune.data.records import Record, Records
    from manytune.data.templates import RowForm

_KINDS = "A .jsonl, .json, .csv, .tsv or .parquet file, or a datasets name like org/name:config."

Files = Annotated[list[str] | None, typer.Argument(metavar="FILE", help=_KINDS, show_default=False)]
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
Format = Annotated[
    Literal["openai", "sharegpt", "alpaca", "trl", "text"] | None,
    typer.Option(
        "--format",
        help="The form of conversations; recognised by the columns if nothing is said.",
        show_default=False,
    ),
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
    group = CommandLine(help="Check, preview, convert and split training data.")
    group.command("check")(check)
    group.command("preview")(preview)
    group.command("convert")(convert)
    group.command("split")(split)
    group.command("cache")(cache)
    app.add_typer(group, name="data")


def check(
    files: Files = None,
    prompt: Prompt = None,
    completion: Completion = None,
    system: System = None,
    template: Template = None,
    form: Format = None,
    base: Base = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Count the examples that have more tokens. Needs --base.")
    ] = None,
    recipe: RecipeFile = None,
    task: Task = None,
    as_json: AsJson = False,
) -> None:
    """Examine files: broken rows, empty fields, duplicates, lengths, prompts that two files share.

    Of conversations also: their form, their roles and how many answers they have, and what is odd about them, such as
    two messages of the user's in a row or a tool's answer without its call.

    Exit status 1 if a row can't be used or a prompt is in two files.
    """
    from manytune.cli.outputs.data import print_check
    from manytune.cli.outputs.json_output import print_json
    from manytune.data.check import check as examine
    from manytune.data.labels.label_check import labels_in, with_labels
    from manytune.data.labels.label_kinds import AnyLabelledForm
    from manytune.data.labels.labelled import LabelledForm

    plan = plan_rows_of(
        files, recipe, task, base, chosen_template(template, prompt, completion, system), form
    )
    limit = max_length or (plan.data.max_length if plan.data is not None else None)
    if plan.base is None and limit is not None:
        raise typer.BadParameter("tokens can be counted with a --base only", param_hint="--max-length")
    sources = {file: _read(file, on_error="skip") for file in plan.files}
    rows_form = plan.form(next(iter(sources.values())).kept)
    if rows_form is None and plan.base is not None:
        raise typer.BadParameter("what the model sees needs --prompt and --completion", param_hint="--base")
    if isinstance(rows_form, AnyLabelledForm):
        trained = plan.trained or plan.files[:1]
        labels, examples = labels_in(sources, rows_form, [file for file in trained if file in sources])
        checked = examine(sources, template=rows_form)
        encoder = plan.label_encoder(labels, limited=False)
        is_image = isinstance(rows_form, LabelledForm) and rows_form.image is not None
        found = with_labels(checked, examples, labels, encoder=encoder, limit=limit, images=is_image)
    else:
        found = examine(sources, template=rows_form, encoder=plan.encoder(limited=False), max_length=limit)
    if as_json:
        print_json({**dataclasses.asdict(found), "passed": found.passed})
    else:
        print_check(found, limit, has_template=rows_form is not None)
    if not found.passed:
        raise typer.Exit(1)


def preview(
    file: File = None,
    prompt: Prompt = None,
    completion: Completion = None,
    system: System = None,
    template: Template = None,
    form: Format = None,
    base: Base = None,
    recipe: RecipeFile = None,
    task: Task = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows to show, from the first.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show what the model will see, with each part that it learns between >>> and <<<."""
    from manytune.cli.outputs.data import print_previews
    from manytune.cli.outputs.json_output import print_json
    from manytune.data.labels.label_check import labels_in, preview_labelled
    from manytune.data.labels.label_kinds import AnyLabelledForm
    from manytune.data.labels.labelled import LabelledForm
    from manytune.data.preview import preview as show
    from manytune.data.records import Rejected
    from manytune.data.templates import render_all

    plan = plan_rows_of(
        [file] if file else None,
        recipe,
        task,
        base,
        chosen_template(template, prompt, completion, system),
        form,
    )
    records = _read(plan.files[0], on_error="skip")
    template_in_use = plan.form(records.kept) or ask_for_template(records.kept, plan.files[0])
    rendered = render_all(template_in_use, records.kept[:rows], on_error="skip")
    found: list[Any]
    if isinstance(template_in_use, AnyLabelledForm):
        labels, _ = labels_in({plan.files[0]: records}, template_in_use, plan.files[:1])
        label_encoder = plan.label_encoder(labels, limited=True)
        is_image = isinstance(template_in_use, LabelledForm) and template_in_use.image is not None
        found = [preview_labelled(one, label_encoder, image=is_image) for one in rendered.kept]
    else:
        encoder = plan.encoder(limited=True)
        found = [item for one in rendered.kept for item in _as_list(show(one, encoder))]
    shown = [item for item in found if not isinstance(item, Rejected)]
    refused = [item for item in found if isinstance(item, Rejected)]
    left_out = sorted((*records.rejected, *rendered.rejected, *refused), key=lambda row: row.row)
    if as_json:
        print_json({"shown": _as_dicts(shown), "rejected": _as_dicts(left_out)})
    else:
        print_previews(shown, left_out, has_base=plan.base is not None)


def convert(
    files: Files = None,
    output: Annotated[
        Path | None, typer.Option(help="File to write; FILE's name with .openai.jsonl if not given.")
    ] = None,
    form: Format = None,
    on_error: Annotated[
        Literal["error", "skip"], typer.Option(help="What becomes of rows that can't be used.")
    ] = "error",
    as_json: AsJson = False,
) -> None:
    """Write conversations of any form as OpenAI's: one object a line, with messages and tools.

    Files in several arguments become one. A file that exists isn't overwritten.
    """
    from manytune.cli.outputs.data import print_split
    from manytune.cli.outputs.json_output import print_json
    from manytune.data.conversation.form import ConversationForm
    from manytune.data.conversation.openai import row_of
    from manytune.data.records import Rejected

    plan = plan_rows_of(files, None, None, None, None, form)
    target = output or Path(f"{Path(plan.files[0]).stem}.openai.jsonl")
    require_absent(target)
    lines: list[str] = []
    left_out: list[Any] = []
    for file in plan.files:
        records = _read(file, on_error=on_error)
        left_out += records.rejected
        found = plan.form(records.kept)
        if not isinstance(found, ConversationForm):
            ask_for_form(records.kept, file)
        for record in records.kept:
            try:
                lines.append(json.dumps(row_of(found.conversation(record)), ensure_ascii=False) + "\n")
            except DataError as error:
                if on_error == "error":
                    raise
                reason = str(error).removeprefix(f"{record.where}: ")
                left_out.append(Rejected(record.source, record.row, reason))
    atomic_write(target, "".join(lines))
    if as_json:
        print_json({"rows": {str(target): len(lines)}, "rejected": _as_dicts(left_out)})
    else:
        print_split({str(target): len(lines)}, left_out)


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
    from manytune.cli.outputs.data import print_split
    from manytune.cli.outputs.json_output import print_json
    from manytune.data.json_files import json_line
    from manytune.data.splits import split as divide

    plan = plan_rows_of(
        files, None, None, None, chosen_template(template, prompt, completion, None, group_by)
    )
    read = [_read(file, on_error=on_error) for file in plan.files]
    form = plan.form(read[0].kept)
    if form is not None and group_by is not None:
        form = form.grouped_by(group_by)
    keyed, left_out = _keyed(
        [record for records in read for record in records.kept], form, group_by, on_error
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


def _as_list(found: tuple[Any, ...] | Any) -> Sequence[Any]:
    return found if isinstance(found, tuple) else (found,)


def _as_dicts(items: Sequence[Any]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(item) for item in items]


def _read(file: str, *, on_error: Literal["error", "skip"]) -> Records:
    from manytune.data.readers import read

    return read(file, on_error=on_error)


def _keyed(
    records: Sequence[Record],
    template: RowForm | None,
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
