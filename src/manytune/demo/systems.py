"""The three that answer: the untouched base, the base with the LoRA adapter, and the fully tuned model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from manytune.data.encode import Encoder
from manytune.demo.answers import Respond
from manytune.demo.recipes import BASE, MAX_NEW_TOKENS
from manytune.engine.static_batch import Generation, generate_batch
from manytune.evaluation.answers import Question, ask
from manytune.evaluation.results import Answer
from manytune.methods.model import PeftModel
from manytune.store.adapters import open_adapter
from manytune.store.base import load_base
from manytune.training.run import TrainedRun

NAMES = ("base", "LoRA", "full")
"""What the report calls them, the baseline first."""


def load_systems(lora: TrainedRun, full: TrainedRun, *, device: str) -> dict[str, Respond]:
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
        "base": _respond(lambda: _without(shared), tokenizer),
        "LoRA": _respond(lambda: _merged(shared), tokenizer),
        "full": _respond(lambda: _as_it_is(tuned), tokenizer),
    }


def _load(trained: TrainedRun, device: str) -> tuple[PeftModel, Any]:
    base = load_base(BASE, device=device)
    open_adapter(trained.adapter, base=base)
    return PeftModel.from_pretrained(base.model, trained.adapter, strict=True), base.tokenizer


def _respond(entered: Callable[[], Any], tokenizer: Any) -> Respond:
    encoder = Encoder(tokenizer, max_length=None)

    def respond(questions: Sequence[Question]) -> Sequence[Answer]:
        with entered() as model:

            def generate(prompts: Sequence[tuple[int, ...]]) -> list[Generation]:
                return generate_batch(
                    model,
                    tokenizer,
                    prompts,
                    max_new_tokens=MAX_NEW_TOKENS,
                    batch_size=len(prompts),
                    end_ids=[encoder.end_id],
                )

            return ask(questions, generate)

    return respond


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
