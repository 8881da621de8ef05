"""Labels from one base with any of many adapters, each with its own head: rows of all of them go through it together.

    runner = TextRunner(lambda: Classifier(model, pad_id=0))
    job = TextJob(texts=[TextTokens(ids)], adapter=adapter, terms=terms)   # as the server's registry has them
    runner.add(job)
    while runner.busy:
        runner.step()
    job.result.result()                                # the probabilities of each text's classes

The base's layers run once over a batch, with each row's own adapter in them. What they give goes to the
adapters' heads, each of which reads its own rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manytune.engine.text_runner import NOT_READ, ImagePixels, TextInput, TextJob, TextTokens, step_tokens_on
from manytune.errors import ContextLengthError, RequestError
from manytune.methods.tuners.terms import Terms
from manytune.mixed.layers import MixedLayers
from manytune.mixed.owners import Owners
from manytune.mixed.slots import AdapterSlots
from manytune.mixed.stacks import Snapshot, digest_of
from manytune.model.image_models import reads_images
from manytune.store.classifier_parts import Classifiers, classifier_parts, head_of


@dataclass(frozen=True, eq=False)
class _Held:
    """A job's adapter in memory."""

    snapshot: Snapshot
    head: Any
    goes_alone: bool


class Classifier:
    """Classifies texts or images. It must be used from one thread, that of the engine over the same base.

    Args:
        model: The base: an encoder of text or images without a head, or a causal language model.
        pad_id: The pad token.
        max_tokens: Length of the longest text; None for no limit.
    """

    def __init__(self, model: PreTrainedModel, *, pad_id: int | None, max_tokens: int | None = None) -> None:
        self._classifiers = Classifiers(model, pad_id=pad_id)
        self._pad_id = pad_id or 0
        self._reads_images = reads_images(model.config)
        self._vocabulary: int = getattr(model.config.get_text_config(), "vocab_size", 0)
        self._whole: Any = self._classifiers.of(2)
        self._slots = AdapterSlots(self._whole)
        self._layers = MixedLayers(dict(self._whole.named_modules()), {})
        #: Length of the longest text, in tokens.
        self.max_tokens = max_tokens

    def check(self, texts: Sequence[TextInput]) -> None:
        """Refuse texts or images that can't be classified.

        Raises:
            RequestError: One is empty, has a token that the base doesn't know, or is no image where it reads images.
            ContextLengthError: One is too long.
        """
        for number, text in enumerate(texts):
            if isinstance(text, ImagePixels) is not self._reads_images:
                kind = "images" if self._reads_images else "texts"
                raise RequestError(f"the base reads {kind}; number {number} is none.")
            if isinstance(text, ImagePixels):
                continue
            if not text.ids:
                raise RequestError(f"text {number} has no tokens.")
            if self.max_tokens is not None and len(text.ids) > self.max_tokens:
                raise ContextLengthError(
                    f"text {number} has {len(text.ids)} tokens; at most {self.max_tokens} can be classified."
                )
            unknown = next((token for token in text.ids if not 0 <= token < self._vocabulary), None)
            if unknown is not None:
                raise RequestError(
                    f"text {number} contains token {unknown}, and the base has {self._vocabulary} tokens."
                )

    # -- what a runner of texts uses

    @property
    def step_tokens(self) -> int:
        """See `TextModel.step_tokens`."""
        return step_tokens_on(self._whole.device)

    @torch.no_grad()  # not inference mode: the slots' tensors are written again when others come and go
    def prepare(self, job: TextJob) -> _Held:
        """See `TextModel.prepare`.

        Raises:
            RequestError: A text is empty, or has a token that the base doesn't know.
            ContextLengthError: A text is too long.
            ConfigError: The adapter is no classifier of this base.
        """
        assert job.adapter is not None and not isinstance(job.adapter, str) and job.terms is not None
        self.check(job.texts)
        parts = classifier_parts(job.adapter, self._classifiers)
        head = head_of(parts, self._classifiers, _Given())
        self._slots.register(job.adapter.digest, parts.trunk, job.terms)
        snapshot = self._slots.snapshot(job.adapter.digest)
        self._slots.unregister(job.adapter.digest)
        self._slots.acquire(snapshot)
        return _Held(snapshot, head, self._changes_positions(job.terms))

    def release(self, prepared: _Held) -> None:
        """See `TextModel.release`."""
        self._slots.release(prepared.snapshot)

    def goes_alone(self, prepared: _Held) -> bool:
        """See `TextModel.goes_alone`."""
        return prepared.goes_alone

    @torch.inference_mode()
    def run(self, rows: Sequence[tuple[_Held, TextInput]]) -> list[list[float]]:
        """See `TextModel.run`: the probabilities of each text's classes, in the order of its head's outputs.

        Of a head with one output, that output: a regression's number on its own scale. For a classifier of words, those
        of every word that is read, one after the other.
        """
        owners = tuple(digest_of(held.snapshot) for held, _ in rows)
        heads = {held.snapshot.digest: held.head for held, _ in rows}
        found: list[list[float]] = [[] for _ in rows]
        try:
            outputs = self._forward([text for _, text in rows], Owners(owners))
            for digest, head in heads.items():
                places = [place for place, owner in enumerate(owners) if owner == digest]
                values = _labelled(head, outputs, places)
                for place, row in zip(places, values.cpu(), strict=True):
                    found[place] = _numbers(row, rows[place][1])
        finally:
            self._slots.end_forward()
        return found

    # -- parts

    def _changes_positions(self, terms: Terms) -> bool:
        """Whether an adapter has a table of its own that isn't of tokens, which the base looks up once for all rows."""
        if self._reads_images:
            return False  # it looks nothing up
        tokens = self._whole.get_input_embeddings()
        tables = (path for path, update in terms.updates.items() if update.lookup)
        return any(self._whole.get_submodule(path) is not tokens for path in tables)

    def _forward(self, rows: Sequence[TextInput], owners: Owners) -> _Outputs:
        """What the base's layers give, with each row's adapter in them."""
        images = [row.pixels for row in rows if isinstance(row, ImagePixels)]
        inputs, extra = ({"pixel_values": torch.stack(images)}, {}) if images else self._of_texts(rows)
        device = self._whole.device
        inputs, extra = ({name: one.to(device) for name, one in part.items()} for part in (inputs, extra))
        options = {"use_cache": False} if getattr(self._whole.config, "use_cache", False) else {}
        with self._layers.applied(self._slots.choose(owners)):
            return _Outputs(inputs, self._whole.base_model(**inputs, **extra, **options))

    def _of_texts(self, rows: Sequence[TextInput]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What base and head read of texts, and what the base alone reads."""
        texts = [row for row in rows if isinstance(row, TextTokens)]
        width = max(text.size for text in texts)

        def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
            return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])

        inputs = {
            "input_ids": padded([text.ids for text in texts], self._pad_id),
            "attention_mask": padded([[1] * text.size for text in texts], 0),
        }
        if not any(text.kinds for text in texts):
            return inputs, {}
        return inputs, {"token_type_ids": padded([text.kinds or [0] * text.size for text in texts], 0)}


@dataclass(frozen=True)
class _Outputs:
    inputs: dict[str, Tensor]
    found: Any


class _Given(nn.Module):
    """What takes the place of the base's layers: it returns what they have returned."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: Any = None

    def forward(self, *_: Any, **__: Any) -> Any:
        """The outputs."""
        return self.outputs


def _labelled(head: Any, outputs: _Outputs, places: Sequence[int]) -> Tensor:
    """The probabilities that a head gives its rows, (rows, classes), or for words (rows, tokens, classes).

    Of a single output, that output.
    """
    rows = torch.tensor(places, device=next(iter(outputs.inputs.values())).device)
    given = {name: value[rows].float() for name, value in outputs.found.items() if isinstance(value, Tensor)}
    head.base_model.outputs = type(outputs.found)(**given)
    logits: Tensor = head(**{name: value[rows] for name, value in outputs.inputs.items()}).logits
    return logits.softmax(-1) if logits.shape[-1] > 1 else logits


def _numbers(row: Tensor, text: TextInput) -> list[float]:
    """What a head gives for a text: (classes,), or for words (tokens, classes), of which those that are read count."""
    if row.dim() > 1:
        assert isinstance(text, TextTokens)
        row = row[[place for place in text.read_at if place != NOT_READ]].flatten()
    found: list[float] = row.tolist()
    return found
