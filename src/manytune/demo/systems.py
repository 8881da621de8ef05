"""The three that answer: the untouched base, the base with the LoRA adapter, and the fully tuned model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from manytune.data.encoding.encode import Encoder
from manytune.data.encoding.encoded import Encoded
from manytune.demo.recipes import BASE, MAX_NEW_TOKENS
from manytune.evaluation.answers import Question
from manytune.evaluation.results import Answer
from manytune.experiments.answering import Decoding, ask_model, read_texts
from manytune.experiments.probes import positions_of
from manytune.model.peft_model import PeftModel
from manytune.store.adapters import open_adapter
from manytune.store.base import load_base
from manytune.training.run import TrainedRun

NAMES = ("base", "LoRA", "full")
"""What the report calls them, the baseline first."""


@dataclass(frozen=True)
class Respondent:
    """One system: call it with questions for its answers.

    Attributes:
        entered: The block in which the model is this system.
        tokenizer: The base's.
    """

    entered: Callable[[], AbstractContextManager[PeftModel]]
    tokenizer: Any

    @property
    def positions(self) -> int | None:
        """How many tokens the model reads at once; None if its configuration doesn't say."""
        with self.entered() as model:
            return positions_of(model.get_base_model())

    def __call__(self, questions: Sequence[Question]) -> Sequence[Answer]:
        """Answer questions, greedily."""
        decoding = Decoding(
            max_new_tokens=MAX_NEW_TOKENS,
            batch_size=len(questions),
            end_ids=(Encoder(self.tokenizer, max_length=None).end_id,),
        )
        with self.entered() as model:
            return ask_model(model, self.tokenizer, questions, decoding)

    def read(self, passages: Sequence[Encoded]) -> tuple[Answer, ...]:
        """Measure how likely the system finds running text."""
        with self.entered() as model:
            return read_texts(model, passages)


def load_systems(lora: TrainedRun, full: TrainedRun, *, device: str) -> dict[str, Respondent]:
    """Load both adapters from disk, as any other command would, and return who answers by name.

    The base and LoRA share one copy of the weights: LoRA's are written into them for its answers and taken out
    again, which restores the base bit for bit.

    Args:
        lora: The LoRA training.
        full: The full fine-tuning.
        device: Where to load them.

    Raises:
        StoreError: An adapter's files are damaged.
        BaseMismatchError: An adapter doesn't belong to the demo's base.
    """
    shared, tokenizer = _load(lora, device)
    tuned, _ = _load(full, device)
    return {
        "base": Respondent(lambda: _without(shared), tokenizer),
        "LoRA": Respondent(lambda: _merged(shared), tokenizer),
        "full": Respondent(lambda: _as_it_is(tuned), tokenizer),
    }


def _load(trained: TrainedRun, device: str) -> tuple[PeftModel, Any]:
    base = load_base(BASE, device=device)
    open_adapter(trained.adapter, base=base)
    return PeftModel.from_pretrained(base.model, trained.adapter, strict=True), base.tokenizer


@contextmanager
def _without(model: PeftModel) -> Iterator[PeftModel]:
    with model.disable_adapter():
        yield model


@contextmanager
def _merged(model: PeftModel) -> Iterator[PeftModel]:
    model.merge_adapter()
    try:
        yield model
    finally:
        model.unmerge_adapter()


@contextmanager
def _as_it_is(model: PeftModel) -> Iterator[PeftModel]:
    yield model
