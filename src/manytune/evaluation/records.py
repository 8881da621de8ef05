"""One result record a run: what a later evaluation needs of it, so that no finished run has to be repeated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from manytune.evaluation.ranks import Spectrum
from manytune.evaluation.results import Answer, Cost, Curves
from manytune.evaluation.versioned import read_versioned, write_versioned

FORMAT = 1
"""Version of the JSON form. A reader refuses every other one."""

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class GroupLoss:
    """How likely a system finds the right answers of one independent group of rows.

    Attributes:
        nll: Negative log likelihood of their completions, summed, in nats.
        tokens: How many tokens that sum runs over.
    """

    __pydantic_config__ = _STRICT

    nll: float
    tokens: int


@dataclass(frozen=True, slots=True)
class RanOn:
    """Where a run was.

    Attributes:
        host: The machine's name.
        device: What the model was on, such as `cpu`, or `cuda:0 (NVIDIA H200)`: the first of the visible devices.
        visible: The devices that the process could see, as its scheduler wrote them into `CUDA_VISIBLE_DEVICES`; None
            if nobody limited them.
    """

    __pydantic_config__ = _STRICT

    host: str
    device: str
    visible: str | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One training run and its answers, or the untouched base's.

    Attributes:
        name: The run's name within its experiment.
        system: The system that it is a run of.
        method: `"base"`, or the name of the method that was trained.
        question: A hash of everything that was asked; a record answers this and nothing else.
        answers: One a test item.
        constrained: The same with answers held to a schema; empty if that wasn't asked for.
        probes: Answers to each probe's items, by the probe's name.
        seed: The training seed; `None` for the base.
        learning_rate: The peak learning rate; `None` for the base.
        steps: Optimizer steps; `None` for the base.
        validation: The loss on each group of the validation rows; empty if it wasn't asked for.
        cost: What it took.
        curves: Training and validation loss.
        spectrum: How much of its rank was used; `None` if that wasn't looked at.
        recipe: The whole recipe, as `manytune train` would run it again; for a system of several adapters, by task.
        ran_on: Where it was asked, which is also where its training ended unless that had been done before.
        format: Version of this record.
    """

    __pydantic_config__ = _STRICT

    name: str
    system: str
    method: str
    question: str
    answers: tuple[Answer, ...]
    probes: Mapping[str, tuple[Answer, ...]]
    constrained: tuple[Answer, ...] = ()
    seed: int | None = None
    learning_rate: float | None = None
    steps: int | None = None
    validation: tuple[GroupLoss, ...] = ()
    cost: Cost = field(default_factory=Cost)
    curves: Curves = field(default_factory=Curves)
    spectrum: Spectrum | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    ran_on: RanOn | None = None
    format: int = FORMAT

    @property
    def validation_loss(self) -> float:
        """Nats per target token over all validation groups; NaN without any."""
        tokens = sum(group.tokens for group in self.validation)
        return sum(group.nll for group in self.validation) / tokens if tokens else float("nan")


_RECORD = TypeAdapter(RunRecord)


def write_record(record: RunRecord, path: Path) -> None:
    """Write the JSON form, whole or not at all; its directory is made if need be."""
    write_versioned(record, path, _RECORD)


def read_record(path: Path) -> RunRecord:
    """Read the JSON form.

    Raises:
        DataError: It can't be read, isn't a record, or is one of another format version.
    """
    remedy = "remove the file to have the run evaluated again"
    return read_versioned(path, _RECORD, version=FORMAT, what="a run's record", remedy=remedy)


@dataclass(frozen=True, slots=True)
class _AnswersTo:
    """Answers to one probe, and what was asked."""

    __pydantic_config__ = _STRICT

    question: str
    answers: tuple[Answer, ...]
    format: int = FORMAT


_ANSWERS = TypeAdapter(_AnswersTo)


def write_answers_to(path: Path, question: str, answers: tuple[Answer, ...]) -> None:
    """Write answers with the hash of what was asked, whole or not at all."""
    write_versioned(_AnswersTo(question, answers), path, _ANSWERS)


def read_answers_to(path: Path, question: str) -> tuple[Answer, ...] | None:
    """Read them; None if something else was asked.

    Raises:
        DataError: As for `read_record`.
    """
    remedy = "remove the file to have it asked again"
    found = read_versioned(path, _ANSWERS, version=FORMAT, what="answers to a probe", remedy=remedy)
    return found.answers if found.question == question else None
