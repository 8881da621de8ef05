"""Runs a model over the texts of many requests, one bounded batch a step, so that other work comes in between.

    runner = TextRunner(lambda: model)
    runner.add(TextJob(texts=[TextTokens(ids)], adapter=adapter, terms=terms))
    while runner.busy:
        runner.step()

A request that is forgotten has no further texts read. It is used from one thread; the results are futures, for which
any thread may wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from manytune.engine.text_queue import TextQueue
from manytune.errors import ManytuneError, ShortMemoryError
from manytune.free_memory import naming_short_memory, require_memory
from manytune.methods.tuners.terms import Adapter, Terms

NOT_READ = -1
"""In the place of a word's first token: it has none, or it was cut off."""


@dataclass(frozen=True)
class TextTokens:
    """A text's token ids, or those of two texts.

    Attributes:
        ids: The tokens, with the special tokens that the base expects.
        kinds: From which of two texts each token is; empty for one text.
        read_at: For a classifier of words: the first token of each word; `NOT_READ` for words that have none.
    """

    ids: tuple[int, ...]
    kinds: tuple[int, ...] = ()
    read_at: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class ImagePixels:
    """An image, for a base that reads images.

    Attributes:
        pixels: As the base's image processor gives it, (channels, height, width).
        size: How many vectors the base makes of it, which count as its tokens.
    """

    pixels: Tensor
    size: int


TextInput = TextTokens | ImagePixels
"""What a model reads: a text's tokens, or an image."""


@dataclass(eq=False, kw_only=True)
class TextJob:
    """Texts that one adapter is to read.

    Attributes:
        texts: The texts, or images.
        adapter: The adapter, or the name of one that the model knows; None for the plain base.
        terms: What it does in the base's layers, if that has been computed.
        tenant: Whom they belong to.
        result: A row of numbers for each text, or why there is none.
    """

    texts: Sequence[TextInput]
    adapter: Adapter | str | None = None
    terms: Terms | None = None
    tenant: str = "default"
    result: Future[list[list[float]]] = field(default_factory=Future)


class TextModel(Protocol):
    """A model that makes a row of numbers of a text."""

    @property
    def step_tokens(self) -> int:
        """Tokens of a forward, padding included."""

    def prepare(self, job: TextJob) -> Any:
        """Check a job's texts and hold its adapter in memory; what is returned is passed to the other methods.

        Raises:
            ManytuneError: It can't be done.
        """

    def release(self, prepared: Any) -> None:
        """Undo `prepare`."""

    def goes_alone(self, prepared: Any) -> bool:
        """Whether each text of a job needs a forward of its own."""

    def run(self, rows: Sequence[tuple[Any, TextInput]]) -> list[list[float]]:
        """One forward over texts, each with what was prepared for its job."""


class TextRunner:
    """The jobs that wait and run.

    Args:
        make_model: Makes the model when it is first needed.
    """

    def __init__(self, make_model: Callable[[], TextModel]) -> None:
        self._make_model = make_model
        self._made: TextModel | None = None
        self._queue: TextQueue[TextJob] = TextQueue()
        self._prepared: dict[TextJob, Any] = {}
        self._found: dict[TextJob, dict[int, list[float]]] = {}

    @property
    def busy(self) -> bool:
        """Whether any text waits."""
        return self._queue.busy

    @property
    def jobs(self) -> tuple[TextJob, ...]:
        """The jobs that aren't finished."""
        return tuple(self._prepared)

    def add(self, job: TextJob) -> None:
        """Put a job into the queue; one that can't be run has its error as the result."""
        if not job.result.set_running_or_notify_cancel():
            return
        try:
            with naming_short_memory("a request with texts"):
                require_memory(0, "a request with texts")
                prepared = self._model.prepare(job)
        except ManytuneError as error:
            job.result.set_exception(error)
            return
        self._prepared[job], self._found[job] = prepared, {}
        lengths = [text.size for text in job.texts]
        alone = self._model.goes_alone(prepared)
        self._queue.add(job, lengths, tenant=job.tenant, goes_alone=alone)

    def forget(self, job: TextJob) -> None:
        """Read no more texts of a job, and release its adapter; nothing if it is finished."""
        if job in self._prepared:
            self._queue.remove(job)
            self._model.release(self._prepared.pop(job))
            del self._found[job]

    def step(self) -> None:
        """One forward. Mutates: jobs whose last text was in it have their results.

        If there isn't enough memory for it, one for each job, so that only those that need too much have none.
        """
        batch = self._queue.next_batch(self._model.step_tokens)
        jobs = dict.fromkeys(job for job, _ in batch)
        parts = [[one for one in batch if one[0] is job] for job in jobs]
        try:
            self._read(batch, raises=len(jobs) > 1)
        except ShortMemoryError:
            for part in parts:
                self._read(part, raises=False)

    def _read(self, batch: Sequence[tuple[TextJob, int]], *, raises: bool) -> None:
        """One forward of some texts; an error is that of their jobs, unless it is to be raised for want of memory."""
        if not batch:
            return
        try:
            with naming_short_memory("reading these texts"):
                rows = self._model.run([(self._prepared[job], job.texts[number]) for job, number in batch])
        except ManytuneError as error:
            if raises and isinstance(error, ShortMemoryError):
                raise
            for job in dict.fromkeys(job for job, _ in batch):
                self.forget(job)
                job.result.set_exception(error)
            return
        for (job, number), row in zip(batch, rows, strict=True):
            found = self._found[job]
            found[number] = row
            if len(found) == len(job.texts):
                self.forget(job)
                job.result.set_result([found[one] for one in range(len(job.texts))])

    @property
    def _model(self) -> TextModel:
        if self._made is None:
            self._made = self._make_model()
        return self._made


def step_tokens_on(device: Any) -> int:
    """How many tokens a step reads: few on a CPU, where they take long, and more where few don't fill the device."""
    return 512 if device.type == "cpu" else 4096
