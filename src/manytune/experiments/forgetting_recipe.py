"""The recipe's section on what systems may have forgotten."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from manytune.data.nearest import did_you_mean
from manytune.data.section import Number, Section
from manytune.data.templates import PromptTemplate
from manytune.evaluation.metrics import METRICS


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class ProbeRecipe(Section):
    """Something that the training isn't about, asked before and after it."""

    name: Annotated[str, Field(min_length=1)]
    """What tables call it."""
    file: str
    """A file of rows, or a `datasets` name."""
    text: str | None = None
    """A field with running text, whose perplexity is measured."""
    prompt: str | None = None
    """Jinja2 template of a question, instead of `text`."""
    completion: str | None = None
    """Jinja2 template of its right answer."""
    metric: str = "contains"
    """How answers to `prompt` are scored."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("prompt and completion go together")
        if (self.text is None) == (self.prompt is None):
            raise ValueError("give either text, or prompt and completion")
        if self.metric not in METRICS:
            raise ValueError(
                f"expected a metric among {', '.join(METRICS)}; found {self.metric!r}"
                f"{did_you_mean(self.metric, METRICS)}"
            )
        self.template()
        return self

    def template(self) -> PromptTemplate | None:
        """The template of its questions; None for running text.

        Raises:
            TemplateError: A part isn't valid Jinja2.
        """
        if self.prompt is None or self.completion is None:
            return None
        return PromptTemplate(self.prompt, self.completion)


class RehearsalRecipe(Section):
    """What is rehearsed, so that it isn't forgotten."""

    file: str
    """A file of rows, or a `datasets` name."""
    prompt: str
    """Jinja2 template of the prompt."""
    completion: str
    """Jinja2 template of the completion."""


class ForgettingRecipe(Section):
    """What the systems may have forgotten, and how it is found out."""

    defaults: bool = True
    """Ask the two probes that manytune brings along: general questions, and passages of Python's manual."""
    passages: Annotated[int, Field(ge=1)] = 16
    """How many passages of running text; of each at most 192 tokens."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 24
    """The longest answer to a probe's question, in tokens."""
    probes: Annotated[tuple[ProbeRecipe, ...], BeforeValidator(_as_tuple)] = ()
    """More of them, of your own."""
    probe: str | None = None
    """A budget's probe: the name of one, or a file whose rows have `text`, or `prompt` and `completion`."""
    at_most: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """The share of the base's score on `probe` that may be lost: learning rates and systems that are shown to lose more
    aren't chosen. 0.01 is one per cent."""
    rehearsal: RehearsalRecipe | None = None
    """What systems with `rehearse` rehearse; null for passages of Python's manual that no probe asks about."""

    @model_validator(mode="after")
    def _whole_budget(self) -> Self:
        if (self.probe is None) != (self.at_most is None):
            raise ValueError("probe and at_most go together")
        return self
