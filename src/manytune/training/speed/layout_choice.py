"""Which batch layout a model trains with: the one asked for, or padded batches where that wouldn't be exact."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from manytune.kernels.products import fast_products
from manytune.model.classifier import is_classifier
from manytune.training.batches import Builder, builder, labelled, packed_attention, seq2seq
from manytune.training.batches.batch import base_model
from manytune.training.batches.support import packed_training_obstacle

EVERY_MODEL = "padded"
"""The layout that suits every model."""


@dataclass(frozen=True)
class LayoutChoice:
    """A batch layout, and why it is used.

    Attributes:
        asked: What the recipe says.
        used: What the batches are.
        reason: Why these differ, as a clause such as "it carries state across positions"; None if they don't.
    """

    asked: str
    used: str
    reason: str | None

    @property
    def note(self) -> str | None:
        """A line for people; None if the layout is the one that was asked for."""
        if self.reason is None:
            return None
        return f"batches are {self.used}, since {self.asked} wouldn't be exact on this model: {self.reason}"


def choose_layout(model: nn.Module, asked: str) -> LayoutChoice:
    """Look at the model and fall back to padded batches if they alone are exact.

    Args:
        model: With its method attached, which may be the reason.
        asked: One of the layouts' names.
    """
    if is_classifier(base_model(model)):
        return LayoutChoice(EVERY_MODEL, EVERY_MODEL, None)  # rows of similar lengths, padded to the longest
    reason = None if asked == EVERY_MODEL else packed_training_obstacle(model)
    return LayoutChoice(asked, asked if reason is None else EVERY_MODEL, reason)


def batch_builder(model: nn.Module, layout: LayoutChoice) -> Builder:
    """What builds the model's batches; an encoder-decoder and a classifier have padded ones of their own."""
    if is_classifier(base_model(model)):
        return labelled.build
    is_encoder_decoder = base_model(model).config.is_encoder_decoder
    return seq2seq.builder_for(model) if is_encoder_decoder else builder(layout.used)


@contextlib.contextmanager
def prepared(model: nn.Module, layout: LayoutChoice) -> Iterator[None]:
    """The block in which the model trains on batches of this layout."""
    attention = contextlib.nullcontext() if layout.used == EVERY_MODEL else packed_attention(model)
    with attention, fast_products(model):
        yield
