"""From a recipe's data section to the token ids of each split; rows left out are accounted for."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from manytune.data.conversation.checks import oddities
from manytune.data.conversation.form import ConversationForm, FormName
from manytune.data.encoding.encoded import Encoded, EncodedSet, rows_of
from manytune.data.encoding.special_tokens import Spelled, spelled_in
from manytune.data.mixing import Mixture
from manytune.data.readers import read_role
from manytune.data.recipe import DataRecipe
from manytune.data.records import Record, Rejected
from manytune.data.rendering import EmptyPartError
from manytune.data.row_errors import row_error
from manytune.data.row_limit import limited
from manytune.data.splits import Leak, group_key, leaks, split
from manytune.data.task_recipe import TaskRecipe
from manytune.data.templates import Example, RowForm
from manytune.data.unused import check_prompt, unused_turns
from manytune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from manytune.data.encoding.encoding_cache import EncodingCache

_SPLIT_SEED = 0  # a constant, so that runs with different training seeds are judged on the same rows


@dataclass(frozen=True)
class Splits:
    """Examples by their use.

    Attributes:
        train: To learn from.
        validation: To measure the loss on while training; may be empty.
        test: To score after training; may be empty.
        left_out: Rows that couldn't be read or rendered.
        leaks: Prompts that occur in more than one split, so that a score partly measures memory.
        task_sizes: Training examples of each task, in the order of `train`; empty for a single task.
        unused: Columns that look like part of a conversation and that no template uses, with the rows in which they
            aren't empty.
        format: The form of a single task's conversations; None for a template's rows.
        odd: The places of conversations with something that is probably not meant.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    left_out: tuple[Rejected, ...]
    leaks: tuple[Leak, ...]
    task_sizes: Mapping[str, int] = field(default_factory=dict)
    unused: Mapping[str, int] = field(default_factory=dict)
    format: FormName | None = None
    odd: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenSplits:
    """Token ids by their use.

    Attributes:
        train: To learn from.
        validation: To measure the loss on; may be empty.
        left_out: Rows that couldn't be read or rendered, or were too long.
        truncated: How many prompts were cut to `max_length`, or conversations shortened to it.
        mode: "chat" if the tokenizer's chat template was used, else "plain".
        mixture: How often each task comes up; None for a single task, each row of which is in every epoch.
        max_prompt: What an adapter cuts longer prompts to, in tokens, so that there is room for answers like those of
            the training; None unless the recipe cuts prompts.
        unused: As in `Splits`.
        turns_dropped: How many answers of conversations aren't learned, since they are too long.
        odd: As in `Splits`.
        spelled: Training rows whose prompts spell special tokens, which are read as text: where the first is and what
            it spells, and how many there are; None if special tokens in text are tokens, or there are none.
    """

    train: tuple[Encoded, ...]
    validation: tuple[Encoded, ...]
    left_out: tuple[Rejected, ...]
    truncated: int
    mode: Literal["chat", "plain"]
    mixture: Mixture | None = None
    max_prompt: int | None = None
    unused: Mapping[str, int] = field(default_factory=dict)
    turns_dropped: int = 0
    odd: tuple[str, ...] = ()
    spelled: Spelled | None = None

    @property
    def train_rows(self) -> int:
        """How many rows there are to learn from; one may have several sequences."""
        return len(rows_of(self.train))

    @property
    def validation_rows(self) -> int:
        """How many rows there are to measure the loss on."""
        return len(rows_of(self.validation))


def read_splits(data: DataRecipe) -> Splits:
    """Read the rows, render them, and divide them as the recipe says.

    Shares are taken from the training rows, by group; the same rows go to the same split in every run. A row
    that several templates put into words is on one side with all its examples, and so are all rows that share
    a prompt with one of them.

    Raises:
        DataError: A file or row can't be used, or a split would be empty.
    """
    rows = _Rows(data)
    if not data.tasks:
        parts = rows.divided(data.files, data.validation, data.test, None)
        return _splits({**parts, "train": limited(parts["train"], data.limit)}, rows, {})
    if data.limit is not None:
        raise DataError("data.limit is for a single task; mixing.cap bounds what each of several counts for")
    joined: dict[str, tuple[Example, ...]] = {"train": (), "validation": (), "test": ()}
    sizes = {}
    for task in data.tasks:
        parts = rows.of_task(task)
        sizes[task.name] = len(parts["train"])
        joined = {role: (*examples, *parts[role]) for role, examples in joined.items()}
    return _splits(joined, rows, sizes)


def _splits(parts: Mapping[str, tuple[Example, ...]], rows: _Rows, sizes: Mapping[str, int]) -> Splits:
    return Splits(
        parts["train"],
        parts["validation"],
        parts["test"],
        tuple(rows.left_out),
        leaks(parts),
        task_sizes=sizes,
        unused=rows.unused,
        format=rows.format,
        odd=tuple(rows.odd),
    )


class _Rows:
    """Reads and renders rows, and keeps account of those that are left out."""

    def __init__(self, data: DataRecipe) -> None:
        self.left_out: list[Rejected] = []
        self.unused: Counter[str] = Counter()
        self.odd: list[str] = []
        self._failed: list[DataError] = []
        self._data = data
        self._on_error = data.on_error
        self._form: RowForm | None = None  # of a single task

    @property
    def format(self) -> FormName | None:
        """The form of a single task's conversations."""
        return self._form.name if isinstance(self._form, ConversationForm) else None

    def of_task(self, task: TaskRecipe) -> dict[str, tuple[Example, ...]]:
        """The examples of one of several tasks by role; each bears the name of its template."""
        templates: dict[str | None, RowForm] = dict(task.forms(self._data.learn).items())
        partial = task.promptsource is not None
        try:
            return self.divided(task.file, task.validation, task.test, templates, partial=partial)
        except DataError as error:
            reason = str(error).removeprefix(f"{error.where}: ")
            raise type(error)(f"task {task.name!r}: {reason}", where=error.where) from error

    def divided(
        self,
        train: Sequence[str],
        validation: float | str | None,
        test: float | str | None,
        templates: Mapping[str | None, RowForm] | None,
        *,
        partial: bool = False,
    ) -> dict[str, tuple[Example, ...]]:
        """One task's examples by role.

        Args:
            train: Its files.
            validation: A file, or a share of the training rows.
            test: The same.
            templates: By the name that their examples bear; None for the one of a single task.
            partial: Whether a template that makes nothing of a row doesn't apply to it; else it is an error.
        """
        rows: dict[str, tuple[_Row, ...]] = {
            "train": self._read(train, "train", templates, partial=partial),
            "validation": (),
            "test": (),
        }
        shares: dict[str, float] = {}
        for role, wanted in (("validation", validation), ("test", test)):
            if isinstance(wanted, str):
                rows[role] = self._read((wanted,), role, templates, partial=partial)
            elif wanted is not None:
                shares[role] = wanted
        if shares:
            fractions = {"train": 1 - sum(shares.values()), **shares}
            rows |= split(
                rows["train"],
                fractions,
                key=lambda row: row.key,
                seed=_SPLIT_SEED,
                stratum=(lambda row: row.examples[0].completion) if self._data.has_classes else None,
            )
        return {
            role: tuple(example for row in found for example in row.examples) for role, found in rows.items()
        }

    def _read(
        self,
        specs: Sequence[str],
        role: str,
        templates: Mapping[str | None, RowForm] | None,
        *,
        partial: bool,
    ) -> tuple[_Row, ...]:
        """Every row of the files as its examples, at least one a row."""
        found: list[tuple[Example, ...]] = []
        for spec in specs:
            records = read_role(spec, role, on_error=self._on_error)
            self.left_out.extend(records.rejected)
            forms = self._single(records.kept, spec) if templates is None else templates
            for form in forms.values() if records.kept else ():
                check_prompt(form, records.kept[0])
            self.unused.update(unused_turns(records.kept, forms.values()))
            rendered = [self._render(record, forms, partial=partial) for record in records.kept]
            if self._failed:
                failed = len({error.where for error in self._failed})
                raise row_error(self._failed[0], failed=failed, rows=len(records.kept)) from self._failed[0]
            found.extend(row for row in rendered if row)
            self.odd.extend(self._oddities(forms, records.kept))
        if not found:
            raise DataError(
                f"no usable row is left to {'train on' if role == 'train' else role}; `manytune data check` says why",
                where=", ".join(specs),
            )
        return _keyed(found, in_groups=templates is not None and len(templates) > 1)

    def _single(self, records: Sequence[Record], spec: str) -> dict[str | None, RowForm]:
        """The form of a single task's rows; the first file's is that of all."""
        if self._form is None:
            self._form = self._data.form(records, spec)
        return {None: self._form}

    def _oddities(self, forms: Mapping[str | None, RowForm], records: Sequence[Record]) -> list[str]:
        """The places of conversations that are odd; `data check` says why."""
        left_out = {row.where for row in self.left_out}
        return [
            record.where
            for form in forms.values()
            if isinstance(form, ConversationForm) and form.name != "text"
            for record in records
            if record.where not in left_out and oddities(form.conversation(record))
        ]

    def _render(
        self, record: Record, templates: Mapping[str | None, RowForm], *, partial: bool
    ) -> tuple[Example, ...]:
        examples = []
        for name, template in templates.items():
            try:
                examples.append(dataclasses.replace(template.render(record), task=name))
            except DataError as error:
                inapplicable = partial and isinstance(error, EmptyPartError)
                if self._on_error == "error" and not inapplicable:
                    self._failed.append(error)
                    continue
                reason = str(error).removeprefix(f"{record.where}: ")
                if inapplicable:
                    reason = f"the template {name!r} doesn't apply to it"
                self.left_out.append(Rejected(record.source, record.row, reason))
        return tuple(examples)


@dataclass(frozen=True)
class _Row:
    """What one row of a file became: an example by each template, and the key of the rows it belongs to."""

    key: str
    examples: tuple[Example, ...]


def _keyed(rows: Sequence[tuple[Example, ...]], *, in_groups: bool) -> tuple[_Row, ...]:
    """Give rows that share a group, or a prompt by any of the templates, the same key.

    Args:
        rows: Each row's examples.
        in_groups: Whether the key becomes the group of examples that have none, since a row's several
            examples aren't independent of one another.
    """
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        while (parent := parents.setdefault(key, key)) != key:
            parents[key] = key = parents[parent]
        return key

    for examples in rows:
        roots = sorted({root(group_key(example)) for example in examples})
        parents.update(dict.fromkeys(roots, roots[0]))
    keyed = []
    for examples in rows:
        key = root(group_key(examples[0]))
        common = hashlib.blake2b(key.encode(), digest_size=8).hexdigest() if in_groups else None
        keyed.append(_Row(key, tuple(dataclasses.replace(e, group=e.group or common) for e in examples)))
    return tuple(keyed)


def encode_splits(
    splits: Splits,
    data: DataRecipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    encoder_decoder: bool = False,
    cache: EncodingCache | None = None,
) -> TokenSplits:
    """Turn the training and validation examples into token ids.

    Args:
        splits: The examples.
        data: The recipe's data section.
        tokenizer: The base's.
        encoder_decoder: Whether the base is an encoder-decoder.
        cache: Where rows that were encoded before are found; None encodes them.

    Raises:
        DataError: A row is too long and the recipe says that this is an error, or no row is left to train
            on.
    """
    encoder = data.encoder(tokenizer, encoder_decoder=encoder_decoder)
    options = {**data.deciding_ids(), "encoder_decoder": encoder_decoder}

    def encode(examples: Sequence[Example]) -> EncodedSet:
        make = partial(encoder.encode_all, examples, on_error=data.on_error)
        return make() if cache is None else cache.encoded(examples, tokenizer, options, make)

    trains: dict[str, EncodedSet] = {}
    start = 0
    for task, size in (splits.task_sizes or {"": len(splits.train)}).items():
        trains[task] = encode(splits.train[start : start + size])
        start += size
        if not trains[task].kept:
            of_task = f" of the task {task!r}" if task else ""
            first = trains[task].dropped[0]
            raise DataError(
                f"none of the {size} training rows{of_task} can be used; the first: {first.reason}. If that is "
                "data.max_length, raise it, or set data.overflow to truncate_prompt or drop_oldest_turns",
                where=first.where,
            )
    validation = encode(splits.validation)
    parts = (*trains.values(), validation)
    return TokenSplits(
        tuple(sequence for train in trains.values() for sequence in train.kept),
        validation.kept,
        (*splits.left_out, *(row for part in parts for row in part.dropped)),
        sum(part.truncated for part in parts),
        encoder.mode,
        data.mixture({task: len(rows_of(train.kept)) for task, train in trains.items()})
        if splits.task_sizes
        else None,
        _max_prompt(data, trains.values()),
        splits.unused,
        sum(part.turns_dropped for part in parts),
        splits.odd,
        None if data.special_tokens_in_text else spelled_in(splits.train, encoder.spelled_special_token),
    )


def _max_prompt(data: DataRecipe, trains: Iterable[EncodedSet]) -> int | None:
    """What is left of `max_length` by 19 of 20 completions (nearest rank)."""
    if data.max_length is None or data.overflow != "truncate_prompt":
        return None
    lengths = sorted(len(row.completion_ids) for train in trains for row in train.kept)
    return max(1, data.max_length - lengths[math.ceil(0.95 * len(lengths)) - 1])


def tokens_digest(sequences: Sequence[Encoded]) -> str:
    """A hash of the token ids and their order: what a resumed run must find unchanged."""
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(sequence.content.encode())
    return digest.hexdigest()
