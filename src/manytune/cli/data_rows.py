"""Which rows a `manytune data` command looks at, and how they become examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from manytune.errors import DataError

if TYPE_CHECKING:
    from manytune.data.encoding.encode import Encoder
    from manytune.data.encoding.length_limit import Overflow
    from manytune.data.labels.label_encoder import LabelEncoder
    from manytune.data.labels.label_kinds import AnyLabels
    from manytune.data.recipe import DataRecipe
    from manytune.data.records import Record
    from manytune.data.templates import PromptTemplate, RowForm


@dataclass(frozen=True)
class RowsPlan:
    """What the options and the recipe say together."""

    files: tuple[str, ...]
    template: RowForm | None
    base: str | None
    data: DataRecipe | None = None
    trained: tuple[str, ...] = ()

    def form(self, records: Sequence[Record]) -> RowForm | None:
        """How rows become examples; found by their columns if nothing is said. None if these say nothing either."""
        from manytune.data.conversation.detect import form_of

        if self.template is not None:
            return self.template
        if self.data is not None:
            return self.data.form(records, self.files[0])
        return form_of(records)

    def label_encoder(self, labels: AnyLabels, *, limited: bool) -> LabelEncoder | None:
        """The same for a classifier's texts; None for its images, which become no tokens."""
        if self.base is None or self.data is None or self.data.image is not None:
            return None
        from manytune.data.labels.word_encoder import encoder_for
        from manytune.store.base import load_tokenizer

        cuts = limited and self.data.overflow == "truncate_prompt"
        return encoder_for(
            load_tokenizer(self.base),
            labels,
            max_length=self.data.max_length if limited else None,
            overflow="truncate_prompt" if cuts else "drop",
            special_tokens_in_text=self.data.special_tokens_in_text,
        )

    def encoder(self, *, limited: bool) -> Encoder | None:
        """The base's encoder; without the length limit if every example is to be measured."""
        if self.base is None:
            return None
        from manytune.data.encoding.encode import Encoder
        from manytune.store.base import is_encoder_decoder, load_tokenizer

        tokenizer, seq2seq = load_tokenizer(self.base), is_encoder_decoder(self.base)
        if self.data is None:
            return Encoder(tokenizer, max_length=None, encoder_decoder=seq2seq)
        # A look at the data stops at no row.
        overflow: Overflow = "drop" if self.data.overflow == "error" else self.data.overflow
        return self.data.encoder(tokenizer, encoder_decoder=seq2seq, limited=limited, overflow=overflow)


def chosen_template(
    template: str | None,
    prompt: str | None,
    completion: str | None,
    system: str | None,
    group_by: str | None = None,
) -> PromptTemplate | None:
    """The template that the options describe; None if they describe none."""
    from manytune.data.templates import choose_template

    return choose_template(template, prompt=prompt, completion=completion, system=system, group_by=group_by)


def plan_rows_of(
    files: Sequence[str] | None,
    recipe: str | None,
    task: str | None,
    base: str | None,
    template: PromptTemplate | None,
    form: Any = None,
) -> RowsPlan:
    """What the options and the recipe say together."""
    if recipe is None:
        if task is not None:
            raise typer.BadParameter("tasks are those of a --recipe", param_hint="--task")
        if not files:
            raise typer.BadParameter("name at least one file, or a --recipe", param_hint="FILE")
        return RowsPlan(tuple(files), _of_format(form, template), base)
    from manytune.training.recipe import outline_from, read_mapping

    loaded = outline_from(read_mapping(Path(recipe)), where=str(recipe))
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
    return RowsPlan(
        files=tuple(files) if files else named,
        template=_of_format(form, template) or next(iter(templates.values()), None),
        base=base or loaded.base,
        data=data,
        trained=named[: len(train)] if not files else (),
    )


def _of_format(form: Any, template: PromptTemplate | None) -> RowForm | None:
    from manytune.data.conversation.form import ConversationForm

    if form is None:
        return template
    if template is not None:
        raise typer.BadParameter("give either a format or a template", param_hint="--format")
    return ConversationForm(form)


def _rows_of(
    data: DataRecipe, task: str | None
) -> tuple[Sequence[str], float | str | None, float | str | None, dict[str | None, RowForm]]:
    """The rows for training, validation and test of a recipe or of one of its tasks, and how they become examples.

    What a single task's are is found by their columns, unless the recipe says it.
    """
    if not data.tasks:
        if task is not None:
            raise typer.BadParameter("the recipe has a single task", param_hint="--task")
        return data.files, data.validation, data.test, {}
    for one in data.tasks:
        templates = one.forms(data.learn)
        if task == one.name or task in templates:
            chosen = {name: found for name, found in templates.items() if task in (name, one.name)}
            return one.file, one.validation, one.test, dict(chosen.items())
    raise typer.BadParameter(
        f"choose one of the recipe's tasks: {', '.join(data.task_templates())}", param_hint="--task"
    )


def ask_for_form(records: Sequence[Record], file: str) -> NoReturn:
    """Say that the rows have no form of conversations, and which there are."""
    from manytune.data.conversation.detect import unknown_form

    raise unknown_form(records, file)


def ask_for_template(records: Sequence[Record], file: str) -> PromptTemplate:
    """Say that a template is needed, and which fields the rows have."""
    fields = ", ".join(records[0].fields) if records else "none"
    raise DataError(
        "say how a row becomes a prompt and a completion: --prompt 'Summarize: {{ document }}' "
        f"--completion '{{{{ summary }}}}', or --template. The rows have the fields {fields}",
        where=file,
    )
