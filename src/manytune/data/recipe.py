"""The data section of a recipe: one task's rows and template, or a list of tasks and how they are mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast, get_args

from pydantic import BeforeValidator, Discriminator, Field, PrivateAttr, Tag, model_validator

from manytune.data.conversation.detect import detect, unknown_form
from manytune.data.conversation.form import ConversationForm, Format, FormName, Learn
from manytune.data.encoding.chat_template import uses_date
from manytune.data.encoding.encode import Encoder
from manytune.data.encoding.encoding_options import EncodingOptions
from manytune.data.encoding.length_limit import Overflow
from manytune.data.labels.label_kinds import AnyLabelledForm
from manytune.data.labels.labelled import labelled_form
from manytune.data.labels.word_labels import TaggedForm
from manytune.data.mixing import Mixture, check_options, mix
from manytune.data.recipe_values import (
    Files,
    References,
    Rows,
    as_fields,
    auto_or_bool,
    iso_date,
    json_values,
)
from manytune.data.records import Record
from manytune.data.section import Section
from manytune.data.task_recipe import (
    DEFAULT_VALIDATION,
    MixingRecipe,
    TaskRecipe,
    check_shares,
    template_of,
)
from manytune.data.templates import PromptTemplate, RowForm
from manytune.errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OF_A_TASK = ("prompt", "completion", "system", "template", "group_by", "references")


class DataRecipe(Section):
    """Which rows, and how a row becomes a prompt and a completion."""

    train: Annotated[
        Annotated[Files, Tag("files")] | Annotated[tuple[TaskRecipe, ...], Tag("tasks")],
        Discriminator(lambda value: "tasks" if _are_tasks(value) else "files"),
        BeforeValidator(lambda value: tuple(value) if _are_tasks(value) else value),
    ]
    """Files (.jsonl, .json, .csv, .tsv, .parquet) or `datasets` names; several are put one after the
    other. Or a list of tasks, each with its own file and template."""
    validation: Rows = DEFAULT_VALIDATION
    """A file or `datasets` name, or the share of the training rows to set aside; null for none."""
    test: Rows = None
    """Rows for `manytune evaluate`, kept away from training; written like `validation`."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Learn from only this many of the training rows, chosen by a hash of their places, so that those of a smaller
    number are among those of a larger one; null for all. For a single task."""
    prompt: str | None = None
    """Jinja2 template of the prompt, such as `"Summarize.\\n\\n{{ document }}"`. Goes with `completion`."""
    completion: str | None = None
    """Jinja2 template of the completion, the part that bears the loss."""
    system: str | None = None
    """Jinja2 template of a system message."""
    text: str | None = None
    """For `task: classification` and `regression`: Jinja2 template of the text, such as `"{{ title }}: {{ body }}"`.
    Goes with `label`, instead of a template."""
    text_pair: str | None = None
    """Jinja2 template of a second text, such as a hypothesis next to a premise, for tokenizers that take two."""
    image: str | None = None
    """For `task: classification`, instead of `text`: the field with an image: a file's path, relative to the data file;
    a data URL; or rows of pixels."""
    tokens: str | None = None
    """For `task: token-classification`: the field with the words, a list of texts or a text with spaces between them.
    Goes with `tags`, instead of a template."""
    tags: str | None = None
    """The field with a tag for each word, such as `B-PER`: a list of texts, or a text with spaces between them; or of
    numbers, if `tag_names` names them."""
    tag_names: Annotated[tuple[str, ...], BeforeValidator(as_fields)] = ()
    """The names of tags that are numbers from 0, in their order, such as `[O, B-PER, I-PER]`."""
    label: str | None = None
    """The field with the label: the classes are the training rows' labels, and splits by shares have an equal share of
    each. For `task: regression` it is a number."""
    template: str | None = None
    """A named template or a template file, instead of `prompt` and `completion`; `prompt-completion` if
    none."""
    format: Format = "auto"
    """The form of conversations, if no template is given: `openai`, `sharegpt`, `alpaca`, `trl`, or `text` for
    documents of which every token is learned. `auto` recognises them by their columns; `template` is none of them."""
    learn: Learn = "all"
    """Which answers of a conversation bear the loss: `all` whose weight isn't 0, or the `last`."""
    references: References = ()
    """Fields with the answers that count as right in `manytune evaluate`, each a text or a list of texts; the
    completion if none is named."""
    group_by: str | None = None
    """A field; rows that share its value stay on one side of a split."""
    mixing: MixingRecipe | None = None
    """How often each task comes up, with a list of tasks; null for each row once an epoch."""
    chat: Annotated[Literal["auto"] | bool, BeforeValidator(auto_or_bool)] = "auto"
    """Whether prompts go through the tokenizer's chat template: `auto` where it has one; `true` requires one, `false`
    leaves it out, as for a chat template that can't be trained with."""
    chat_template_kwargs: Annotated[dict[str, Any], BeforeValidator(json_values)] = Field(
        default_factory=dict
    )
    """Values of the chat template's own variables, such as `{enable_thinking: false}`; the adapter keeps them."""
    date: Annotated[str | None, BeforeValidator(iso_date)] = None
    """What a chat template that writes today's date takes for today, such as 2026-01-31; null for the start of the run,
    which keeps it."""
    special_tokens_in_text: bool = False
    """Whether special tokens that fields and messages spell, such as `<|im_end|>`, are tokens: for rows with a chat
    template written into them. If not, they are read as text, and only those that templates write, and those in
    answers, are tokens; the adapter keeps it."""
    max_length: Annotated[int, Field(ge=2)] | None = 2048
    """The most tokens of a prompt and its completion together; null for no limit."""
    overflow: Overflow = "error"
    """What becomes of longer rows: an error, left out (`drop`), the prompt's end cut off (`truncate_prompt`), or of
    conversations the oldest or newest turns left out; all counted."""
    on_error: Literal["error", "skip"] = "error"
    """What becomes of rows that can't be read or rendered, or that the chat template refuses: an error, or left out and
    counted."""

    cache: bool = True
    """Keep the token ids of 200 rows or more for the next run (`manytune data cache`); changes no result."""
    _numeric: bool = PrivateAttr(default=False)

    @model_validator(mode="before")
    @classmethod
    def _shares_for_tasks(cls, content: object) -> object:
        """Write the section's shares into the tasks that have none, so that a task says all about itself."""
        if not (isinstance(content, dict) and _are_tasks(content.get("train"))):
            return content
        shares = {
            "validation": content.get("validation", DEFAULT_VALIDATION),
            "test": content.get("test"),
        }
        tasks = [{**shares, **task} if isinstance(task, dict) else task for task in content["train"]]
        return {**content, "train": tasks}

    @model_validator(mode="after")
    def _one_template(self) -> Self:
        if self.tasks:
            self._check_tasks()
            return self
        if self.mixing is not None:
            raise ValueError("mixing goes with a list of tasks in train, each with a name and a file")
        check_shares(self.validation, self.test)
        if self.is_labelled:
            self._check_labelled()
            return self
        if self.described and self.format not in ("auto", "template"):
            raise ValueError(
                f"format {self.format} says what a row is; leave out template, prompt and completion"
            )
        if self.is_conversational and self.system is not None:
            raise ValueError("system goes with a template; a conversation has its system message in the row")
        if not self.is_conversational:
            self.prompt_template()
        return self

    @property
    def is_labelled(self) -> bool:
        """Whether the rows are a classifier's: a text or an image, and a label."""
        keys = (self.text, self.label, self.text_pair, self.image, self.tokens, self.tags)
        return any(key is not None for key in keys) or bool(self.tag_names)

    @property
    def is_tagged(self) -> bool:
        """Whether they are words with tags."""
        return self.tokens is not None or self.tags is not None or bool(self.tag_names)

    @property
    def has_classes(self) -> bool:
        """Whether the rows' labels are classes."""
        return self.is_labelled and not self.is_tagged and not self._numeric

    def of_numbers(self) -> Self:
        """The section of a recipe whose task is regression: its label is a number."""
        found = self.model_copy()
        found._numeric = True
        return found

    def labelled_form(self) -> AnyLabelledForm:
        """How a labelled row becomes an example.

        Raises:
            TemplateError: Text (or image) or label, or tokens or tags, is missing, or a template isn't valid Jinja2.
        """
        if self.is_tagged:
            if self.tokens is None or self.tags is None:
                raise TemplateError("tokens and tags, fields' names, go together")
            return TaggedForm(self.tokens, self.tags, self.tag_names, self.group_by)
        return labelled_form(
            self.text, self.label, self.text_pair, self.group_by, self.image, is_numeric=self._numeric
        )

    @property
    def described(self) -> bool:
        """Whether a template is described."""
        return self.template is not None or self.prompt is not None or self.completion is not None

    @property
    def is_conversational(self) -> bool:
        """Whether the format is known to be one of conversations or of running text."""
        return self.format not in ("auto", "template")

    def form(self, records: Sequence[Record], where: str) -> RowForm:
        """How rows become examples; for a single task.

        Args:
            records: The rows, for a format that isn't given.
            where: What messages call them.

        Raises:
            DataError: The rows' columns don't say what their form is.
            TemplateError: The template can't be used.
        """
        if self.is_labelled:
            return self.labelled_form()
        found: str | None = self.format
        if found == "auto" and not self.described and self.system is None:
            found = detect(records)
            if found not in (*get_args(FormName), "prompt-completion"):
                raise unknown_form(records, where)
        if found in get_args(FormName):
            return ConversationForm(cast(FormName, found), self.learn, self.group_by, self.references)
        return self.prompt_template()

    @property
    def tasks(self) -> tuple[TaskRecipe, ...]:
        """The tasks of a list of them; empty if the section describes a single one itself."""
        return tuple(task for task in self.train if isinstance(task, TaskRecipe))

    @property
    def files(self) -> tuple[str, ...]:
        """The training rows of a single task; empty for a list of tasks."""
        return tuple(file for file in self.train if isinstance(file, str))

    @property
    def sources(self) -> tuple[str, ...]:
        """Every file and dataset that it names, in the order in which they are read."""
        parts = [(one.file, one.validation, one.test) for one in self.tasks]
        parts = parts or [(self.files, self.validation, self.test)]
        return tuple(name for train, *others in parts for name in (*train, *others) if isinstance(name, str))

    def prompt_template(self) -> PromptTemplate:
        """The template that the keys describe; for a single task.

        Raises:
            TemplateError: A part isn't valid Jinja2, or there is no such named template or template file.
        """
        return template_of(self)

    def task_templates(self) -> dict[str, PromptTemplate]:
        """The templates of all tasks by the names that their examples bear; empty for a single task.

        Raises:
            TemplateError: There is no such template or file, or it can't be used.
        """
        return {name: found for task in self.tasks for name, found in task.prompt_templates().items()}

    def mixture(self, sizes: Mapping[str, int]) -> Mixture:
        """The mixture of the tasks.

        Args:
            sizes: Training examples of each.

        Raises:
            DataError: A task has no example, or would never be trained on.
        """
        return mix(sizes, **self._mixing_options())

    def encoder(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        encoder_decoder: bool = False,
        limited: bool = True,
        overflow: Overflow | None = None,
    ) -> Encoder:
        """The encoder of the rows.

        Args:
            tokenizer: The base's.
            encoder_decoder: Whether the base is an encoder-decoder.
            limited: Whether `max_length` holds.
            overflow: In place of the section's.

        Raises:
            DataError: The chat template isn't there, or has no such variable.
            TemplateError: It can't be used for training.
        """
        return Encoder(
            tokenizer,
            max_length=self.max_length if limited else None,
            overflow=overflow or self.overflow,
            chat=None if self.chat == "auto" else self.chat,
            encoder_decoder=encoder_decoder,
            chat_template_kwargs=self.chat_template_kwargs,
            now=self.encoding_options().now(),
            special_tokens_in_text=self.special_tokens_in_text,
        )

    def deciding_ids(self) -> dict[str, Any]:
        """What decides token ids next to the rows and the tokenizer, as JSON."""
        keys = ("chat", "chat_template_kwargs", "date", "max_length", "overflow", "on_error")
        return {key: getattr(self, key) for key in (*keys, "special_tokens_in_text")}

    def encoding_options(self, *, max_prompt: int | None = None) -> EncodingOptions:
        """What an adapter keeps of the encoding.

        Args:
            max_prompt: The tokens that training cut longer prompts to.
        """
        return EncodingOptions(
            self.chat_template_kwargs,
            self.date,
            max_prompt,
            special_tokens_in_text=self.special_tokens_in_text,
        )

    def dated(self, tokenizer: PreTrainedTokenizerBase, date: str) -> Self:
        """The section with a date, if the chat template writes one and the section doesn't say which."""
        writes_date = self.chat is not False and bool(tokenizer.chat_template) and uses_date(tokenizer)
        return self.model_copy(update={"date": date}) if writes_date and self.date is None else self

    def _mixing_options(self) -> dict[str, Any]:
        mixing = self.mixing or MixingRecipe()
        weights = {task.name: task.weight for task in self.tasks if task.weight is not None}
        return {**dict(mixing), "weights": weights or None}

    def _check_labelled(self) -> None:
        taken = [key for key in _OF_A_TASK if key != "group_by" and getattr(self, key)]
        taken += [] if self.format == "auto" else ["format"]
        if taken:
            raise ValueError(
                f"give either text and label, image and label, or tokens and tags, for a classifier, or "
                f"{' and '.join(taken)}"
            )
        if self.is_tagged and (self.text, self.text_pair, self.label, self.image) != (None, None, None, None):
            raise ValueError("give either text and label, image and label, or tokens and tags")
        self.labelled_form()
        if self.image is not None and self.overflow != "error":
            raise ValueError("overflow is for texts; an image has no length, so leave it out")

    def _check_tasks(self) -> None:
        for key in _OF_A_TASK:
            if getattr(self, key):
                raise ValueError(f"with a list of tasks, {key} belongs in each task, not next to the list")
        if self.is_labelled:
            raise ValueError(
                "text, image and label, or tokens and tags, are a classifier's, which has one task; give train as files"
            )
        for key in ("validation", "test"):
            if isinstance(getattr(self, key), str):
                raise ValueError(
                    f"with a list of tasks, {key} is a share or null; a file of a task's rows belongs in the task"
                )
        if self.format != "auto":
            raise ValueError("with a list of tasks, format belongs in each task, not next to the list")
        seen: set[str] = set()
        for task in self.tasks:
            names = {task.name, *task.prompt_templates()}
            if taken := names & seen:
                raise ValueError(f"two tasks are named {min(taken)!r}")
            seen |= names
        check_options([task.name for task in self.tasks], **self._mixing_options())


def _are_tasks(value: object) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(item, dict | TaskRecipe) for item in value)
