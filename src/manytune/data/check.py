"""What is known about a data set before it is trained on: broken rows, doubles, lengths, leaks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from manytune.data.conversation.checks import oddities
from manytune.data.conversation.form import ConversationForm
from manytune.data.encoding.encode import Encoder
from manytune.data.encoding.encoded import Encoded
from manytune.data.printable import is_absent
from manytune.data.records import Located, Records, Rejected
from manytune.data.splits import Leak, key_text, leaks, record_key
from manytune.data.templates import Example, Rendered, RowForm, render_all
from manytune.data.unused import unused_turns
from manytune.errors import DataError


@dataclass(frozen=True)
class Lengths:
    """How a length is distributed over rows."""

    minimum: int
    median: int
    percentile_95: int
    maximum: int

    @classmethod
    def of(cls, lengths: Collection[int]) -> Lengths:
        """Return the distribution of at least one length; percentiles are lengths that occur (nearest rank)."""
        ordered = sorted(lengths)
        median, percentile_95 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95))
        return cls(ordered[0], median, percentile_95, ordered[-1])


@dataclass(frozen=True)
class TokenCheck:
    """What a tokenizer shows about one file's examples.

    Args:
        over_length: Examples with more tokens than allowed; `None` without a limit.
        special_tokens: Examples whose prompt spells a special token. It is read as text, unless the recipe's
            `special_tokens_in_text` says otherwise.
    """

    over_length: int | None
    special_tokens: int


@dataclass(frozen=True, slots=True)
class Oddity(Located):
    """What is probably not meant in a row that can be used all the same."""

    source: str
    row: int
    what: str


@dataclass(frozen=True)
class NumberCheck:
    """What is known about labels that are numbers: the lowest and highest, their mean and standard deviation."""

    minimum: float
    mean: float
    deviation: float
    maximum: float


@dataclass(frozen=True)
class FileCheck:
    """What is known about one file.

    Args:
        source: The file or dataset.
        rows: All its rows, usable or not.
        rejected: The rows that can't be read, rendered or encoded.
        empty: In how many rows each field is missing, null or blank; only fields where that occurs.
        duplicate_rows: Rows that equal an earlier one.
        duplicate_prompts: Examples whose prompt equals an earlier one's; `None` without a template.
        lengths: By what is measured: the text fields, or with a template prompt and completion; in characters,
            and in tokens if there is a tokenizer. The end token counts.
        tokens: What the tokenizer shows; `None` without one.
        unused: Columns that look like part of a conversation and that the template doesn't use, with the rows in which
            they aren't empty.
        form: The form of the rows' conversations; `None` for a template's rows.
        roles: How many messages there are of each role.
        odd: What is probably not meant in conversations that can be used all the same.
        tools_as_text: In how many conversations tools are written as text, since the chat template knows none.
        labels: How many rows have which label, for a classifier.
        numbers: The labels of a regression; `None` for others.
    """

    source: str
    rows: int
    rejected: tuple[Rejected, ...]
    empty: Mapping[str, int]
    duplicate_rows: int
    duplicate_prompts: int | None
    lengths: Mapping[str, Lengths]
    tokens: TokenCheck | None
    unused: Mapping[str, int] = field(default_factory=dict)
    form: str | None = None
    roles: Mapping[str, int] = field(default_factory=dict)
    odd: tuple[Oddity, ...] = ()
    tools_as_text: int = 0
    labels: Mapping[str, int] = field(default_factory=dict)
    numbers: NumberCheck | None = None


@dataclass(frozen=True)
class DataCheck:
    """What is known about several files, and the prompts that more than one of them has."""

    files: tuple[FileCheck, ...]
    leaks: tuple[Leak, ...]

    @property
    def passed(self) -> bool:
        """Whether every row can be used and no prompt is in two files."""
        return not self.leaks and not any(file.rejected for file in self.files)


def check(
    sources: Mapping[str, Records],
    *,
    template: RowForm | None = None,
    encoder: Encoder | None = None,
    max_length: int | None = None,
) -> DataCheck:
    """Examine files; whatever is wrong with a row is part of the result.

    Args:
        sources: What was read from each file, rejected rows included.
        template: How rows become examples: a template or a form of conversations; without one, only the rows themselves
            are examined.
        encoder: How examples become tokens, without a length limit of its own; needs a template.
        max_length: The most tokens of prompt and completion together that will be allowed.
    """
    files = []
    examples: dict[str, tuple[Example, ...]] = {}
    for source, records in sources.items():
        file = _check_rows(source, records)
        if template is not None:
            rendered = render_all(template, records.kept, on_error="skip")
            examples[source] = rendered.kept
            file = replace(_with_examples(file, rendered), unused=unused_turns(records.kept, [template]))
            if isinstance(template, ConversationForm):
                file = _with_conversations(file, template, records, rendered)
            if encoder is not None:
                file = _with_tokens(file, rendered.kept, encoder, max_length)
        files.append(file)
    return DataCheck(tuple(files), leaks(examples))


def _check_rows(source: str, records: Records) -> FileCheck:
    names = dict.fromkeys(name for record in records.kept for name in record.fields)
    values = {name: [record.fields.get(name) for record in records.kept] for name in names}
    texts = {
        name: [len(value) for value in column if isinstance(value, str)] for name, column in values.items()
    }
    empty = {name: sum(map(_is_empty, column)) for name, column in values.items()}
    return FileCheck(
        source=source,
        rows=len(records.kept) + len(records.rejected),
        rejected=records.rejected,
        empty={name: count for name, count in empty.items() if count},
        duplicate_rows=_repeated([record_key(record) for record in records.kept]),
        duplicate_prompts=None,
        lengths=_lengths({f"{name}, characters": lengths for name, lengths in texts.items()}),
        tokens=None,
    )


def _with_examples(file: FileCheck, rendered: Rendered) -> FileCheck:
    prompts = [sum(len(segment.text) for segment in example.segments) for example in rendered.kept]
    completions = [len(example.completion) for example in rendered.kept]
    return replace(
        file,
        rejected=_in_order(file.rejected + rendered.rejected),
        duplicate_prompts=_repeated([key_text(example) for example in rendered.kept]),
        lengths=_lengths({"prompt, characters": prompts, "completion, characters": completions}),
    )


def _with_conversations(
    file: FileCheck, form: ConversationForm, records: Records, rendered: Rendered
) -> FileCheck:
    file = replace(file, form=form.name)
    if form.name == "text":
        return file
    unusable = {row.where for row in rendered.rejected}
    conversations = [form.conversation(record) for record in records.kept if record.where not in unusable]
    roles = Counter(message.role for one in conversations for message in one.messages)
    answers = [sum(message.is_answer for message in one.messages) for one in conversations]
    odd = (Oddity(one.source, one.row, what) for one in conversations for what in oddities(one))
    return replace(
        file,
        roles=dict(roles.most_common()),
        odd=tuple(odd),
        lengths={**_lengths({"answers": answers}), **file.lengths},
    )


def _with_tokens(
    file: FileCheck, examples: Sequence[Example], encoder: Encoder, max_length: int | None
) -> FileCheck:
    encoded: list[Encoded] = []
    refused: list[Rejected] = []
    for example in examples:
        try:
            encoded += encoder.sequences(example)
        except DataError as error:
            reason = str(error).removeprefix(f"{example.where}: ")
            refused.append(Rejected(example.source, example.row, reason))
    prompts = [len(item.input_ids) - item.targets for item in encoded]
    completions = [item.targets for item in encoded]
    together = [len(item.input_ids) for item in encoded]
    names = ("given, tokens", "learned, tokens") if file.form else ("prompt, tokens", "completion, tokens")
    lengths = {names[0]: prompts, names[1]: completions, "together, tokens": together}
    with_tools = sum(bool(example.tools or example.tool_calls) for example in examples)
    return replace(
        file,
        tools_as_text=0 if encoder.writes_tools else with_tools,
        rejected=_in_order((*file.rejected, *refused)),
        lengths={**file.lengths, **_lengths(lengths)},
        tokens=TokenCheck(
            over_length=None if max_length is None else sum(length > max_length for length in together),
            special_tokens=sum(encoder.spelled_special_token(example) is not None for example in examples),
        ),
    )


def _lengths(measured: Mapping[str, Collection[int]]) -> dict[str, Lengths]:
    return {name: Lengths.of(lengths) for name, lengths in measured.items() if lengths}


def _in_order(rejected: Iterable[Rejected]) -> tuple[Rejected, ...]:
    return tuple(sorted(rejected, key=lambda row: row.row))


def _is_empty(value: object) -> bool:
    return is_absent(value) or value == [] or value == {} or (isinstance(value, str) and not value.strip())


def _repeated(keys: Collection[str]) -> int:
    return len(keys) - len(set(keys))
