"""One task of several in a recipe's data section, and how they are mixed."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from manytune.data.conversation.form import ConversationForm, FormName, Learn
from manytune.data.mixing import Strategy
from manytune.data.promptsource import load_promptsource
from manytune.data.recipe_values import Files, References, Rows, names_or_null
from manytune.data.section import Number, Section
from manytune.data.templates import PromptTemplate, RowForm, choose_template

DEFAULT_TEMPLATE = "prompt-completion"
DEFAULT_VALIDATION = 0.1


class TaskRecipe(Section):
    """One task of several: its rows, its template, and its weight."""

    name: Annotated[str, Field(min_length=1)]
    """What the task is called in scores, and in `--task` of `generate` and `evaluate`."""
    file: Files
    """Its training rows: a file or a `datasets` name, or a list of them."""
    prompt: str | None = None
    """As in `data`."""
    completion: str | None = None
    """As in `data`."""
    system: str | None = None
    """As in `data`."""
    template: str | None = None
    """As in `data`."""
    promptsource: str | None = None
    """A promptsource file, instead of a template: each row becomes one example by each of its templates."""
    templates: Annotated[tuple[str, ...] | None, BeforeValidator(names_or_null)] = None
    """The names of those of its templates that are used; null for all."""
    format: FormName | None = None
    """The form of its conversations, instead of a template; as in `data`, but never recognised by itself."""
    references: References = ()
    """As in `data`."""
    group_by: str | None = None
    """As in `data`. Tasks made of the same rows need the same field, so that a row is on one side in all."""
    weight: Annotated[Number, Field(gt=0)] | None = None
    """Its share of an epoch, relative to the other tasks' weights; with `mixing.strategy: explicit`."""
    validation: Rows = DEFAULT_VALIDATION
    """As in `data`, whose share holds where a task says nothing."""
    test: Rows = None
    """As in `data`, whose share holds where a task says nothing."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.templates is not None and self.promptsource is None:
            raise ValueError(
                f"the task {self.name!r}: templates goes with promptsource, a file to choose from"
            )
        others = [
            key for key in ("prompt", "completion", "template", "format") if getattr(self, key) is not None
        ]
        if self.format is not None and self.promptsource is None and len(others) > 1:
            raise ValueError(f"the task {self.name!r}: give either {' or '.join(others)}")
        if self.promptsource is not None and others:
            raise ValueError(f"the task {self.name!r}: give either promptsource or {' and '.join(others)}")
        check_shares(self.validation, self.test)
        self.prompt_templates()
        return self

    def prompt_templates(self) -> dict[str, PromptTemplate]:
        """The task's templates: one by its name, or those of a promptsource file as `task/template`; none for a format.

        Raises:
            TemplateError: There is no such template or file, or it can't be used.
        """
        if self.format is not None:
            return {}
        if self.promptsource is None:
            return {self.name: template_of(self)}
        return {
            f"{self.name}/{name}": PromptTemplate(
                template.prompt, template.completion, self.system, self.group_by, self.references
            )
            for name, template in load_promptsource(self.promptsource, self.templates).items()
        }

    def forms(self, learn: Learn) -> dict[str, RowForm]:
        """How its rows become examples: its templates, or the form of its conversations, by the examples' names.

        Args:
            learn: Which answers of a conversation bear the loss.

        Raises:
            TemplateError: As for `prompt_templates`.
        """
        if self.format is not None:
            return {self.name: ConversationForm(self.format, learn, self.group_by, self.references)}
        return dict(self.prompt_templates())


class MixingRecipe(Section):
    """How often each of several tasks comes up."""

    strategy: Strategy = "proportional"
    """`proportional` to the tasks' sizes, to their roots (`temperature`), or `explicit`: the tasks' weights."""
    cap: Annotated[int, Field(ge=1)] | None = None
    """The most examples that a task counts for; null for no limit."""
    temperature: Annotated[Number, Field(ge=1)] | None = None
    """With the strategy of this name: 1 is proportional, a higher one brings the shares closer together."""


def template_of(section: Any) -> PromptTemplate:
    """The template that the keys of `data` or of a task describe, or the default one if they describe none."""
    described = section.template is not None or section.prompt is not None or section.completion is not None
    template = choose_template(
        section.template if described else DEFAULT_TEMPLATE,
        prompt=section.prompt,
        completion=section.completion,
        system=section.system,
        group_by=section.group_by,
        references=section.references,
    )
    assert template is not None  # something is described, or the default is named
    return template


def check_shares(*rows: float | str | None) -> None:
    """Refuse shares that leave no rows to train on.

    Raises:
        ValueError: They do.
    """
    shares = [share for share in rows if isinstance(share, float)]
    if sum(shares) >= 1:
        raise ValueError(f"validation and test take {sum(shares):g} of the rows; nothing is left to train on")
