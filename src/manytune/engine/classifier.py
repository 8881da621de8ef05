"""Labels from one base with any of many adapters, each with its own head: rows of all of them go through it together.

    classifier = Classifier(model, pad_id=0)
    asked = Asked(adapter, terms, [TextTokens(ids)])   # adapter and terms as the server's registry has them
    classifier.run([asked, another])
    asked.probabilities                                # a row for each text

The base's layers run once over a batch, with each row's own adapter in them. What they give goes to the
adapters' heads, each of which reads its own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manytune.errors import ContextLengthError, ManytuneError, RequestError
from manytune.methods.tuners.terms import Adapter, Terms
from manytune.mixed.layers import MixedLayers
from manytune.mixed.owners import Owners
from manytune.mixed.slots import AdapterSlots
from manytune.mixed.stacks import digest_of
from manytune.store.classifier_parts import Classifiers, classifier_parts, head_of

NOT_READ = -1
"""In the place of a word's first token: it has none, or it was cut off."""

_BATCH_TOKENS = 4096  # of a forward, padding included


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


@dataclass(eq=False)
class Asked:
    """Texts that one adapter is to classify.

    Attributes:
        adapter: The adapter.
        terms: What it does in the base's layers; see `served_terms`.
        texts: The texts.
        probabilities: Those of the classes, in the order of the head's outputs, for each text; None until it has run.
            Of a head with one output, that output: a regression's number on its own scale. Empty for words.
        words: The same of each word, for a classifier of words; none of a word that isn't read. None for others.
        error: Why these can't be classified; None if they can.
    """

    adapter: Adapter
    terms: Terms
    texts: Sequence[TextTokens]
    probabilities: list[list[float]] | None = None
    words: list[list[list[float]]] | None = None
    error: ManytuneError | None = None


class Classifier:
    """Classifies texts. It must be used from one thread, that of the engine over the same base.

    Args:
        model: The base: an encoder without a head, or a causal language model.
        pad_id: The pad token.
        max_tokens: Length of the longest text; None for no limit.
    """

    def __init__(self, model: PreTrainedModel, *, pad_id: int | None, max_tokens: int | None = None) -> None:
        self._classifiers = Classifiers(model, pad_id=pad_id)
        self._pad_id = pad_id or 0
        self._vocabulary: int = model.config.get_text_config().vocab_size
        self._whole: Any = self._classifiers.of(2)
        self._slots = AdapterSlots(self._whole)
        self._layers = MixedLayers(dict(self._whole.named_modules()), {})
        #: Length of the longest text, in tokens.
        self.max_tokens = max_tokens

    def check(self, texts: Sequence[TextTokens]) -> None:
        """Refuse texts that can't be classified.

        Raises:
            RequestError: One is empty, or has a token that the base doesn't know.
            ContextLengthError: One is too long.
        """
        for number, text in enumerate(texts):
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

    @torch.inference_mode()
    def run(self, asked: Sequence[Asked]) -> None:
        """Classify all texts, those of several adapters in the same forward.

        Mutates: what was asked, which gets its probabilities, or the error for which it has none.
        """
        heads: dict[str, Any] = {}
        ready: list[Asked] = []
        for one in asked:
            digest = one.adapter.digest
            try:
                self.check(one.texts)
                if digest not in heads:
                    parts = classifier_parts(one.adapter, self._classifiers)
                    head = head_of(parts, self._classifiers, _Given())
                    self._slots.register(digest, parts.trunk, one.terms)
                    heads[digest] = head
            except ManytuneError as error:
                one.error = error
            else:
                ready.append(one)
        self._answer(ready, heads)

    def _answer(self, asked: Sequence[Asked], heads: Mapping[str, Any]) -> None:
        held = [self._slots.snapshot(digest) for digest in heads]
        for snapshot in held:
            self._slots.acquire(snapshot)
        try:
            names = {digest: digest_of(snapshot) for digest, snapshot in zip(heads, held, strict=True)}
            rows = [(one, number) for one in asked for number in range(len(one.texts))]
            found: dict[tuple[int, int], Tensor] = {}
            for batch in _batches(rows, self._changes_positions):
                owners = [one.adapter.digest for one, _ in batch]
                outputs = self._forward(
                    [one.texts[number] for one, number in batch],
                    Owners(tuple(names[digest] for digest in owners)),
                )
                for digest in dict.fromkeys(owners):
                    places = [place for place, owner in enumerate(owners) if owner == digest]
                    values = _labelled(heads[digest], outputs, places)
                    for place, row in zip(places, values.cpu(), strict=True):
                        one, number = batch[place]
                        found[id(one), number] = row
        finally:
            self._slots.end_forward()
            for digest, snapshot in zip(heads, held, strict=True):
                self._slots.release(snapshot)
                self._slots.unregister(digest)
        for one in asked:
            rows_of_one = [found[id(one), number] for number in range(len(one.texts))]
            if rows_of_one and rows_of_one[0].dim() > 1:  # (tokens, classes): a classifier of words
                one.words = [
                    [row[place].tolist() if place != NOT_READ else [] for place in text.read_at]
                    for text, row in zip(one.texts, rows_of_one, strict=True)
                ]
            one.probabilities = [row.tolist() if one.words is None else [] for row in rows_of_one]

    def _changes_positions(self, terms: Terms) -> bool:
        """Whether an adapter has a table of its own that isn't of tokens, which the base looks up once for all rows."""
        tokens = self._whole.get_input_embeddings()
        tables = (path for path, update in terms.updates.items() if update.lookup)
        return any(self._whole.get_submodule(path) is not tokens for path in tables)

    def _forward(self, texts: Sequence[TextTokens], owners: Owners) -> _Outputs:
        """What the base's layers give, with each row's adapter in them."""
        width = max(len(text.ids) for text in texts)
        device = self._whole.device

        def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
            return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)

        inputs = {
            "input_ids": padded([text.ids for text in texts], self._pad_id),
            "attention_mask": padded([[1] * len(text.ids) for text in texts], 0),
        }
        extra: dict[str, Any] = {}
        if any(text.kinds for text in texts):
            extra["token_type_ids"] = padded([text.kinds or [0] * len(text.ids) for text in texts], 0)
        if getattr(self._whole.config, "use_cache", False):
            extra["use_cache"] = False
        with self._layers.applied(self._slots.choose(owners)):
            return _Outputs(inputs, self._whole.base_model(**inputs, **extra))


@dataclass(frozen=True)
class _Outputs:
    inputs: dict[str, Tensor]
    found: Any


class _Given(nn.Module):
    """What stands in the place of the base's layers: it gives what they have given."""

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
    rows = torch.tensor(places, device=outputs.inputs["input_ids"].device)
    given = {name: value[rows].float() for name, value in outputs.found.items() if isinstance(value, Tensor)}
    head.base_model.outputs = type(outputs.found)(**given)
    logits: Tensor = head(**{name: value[rows] for name, value in outputs.inputs.items()}).logits
    return logits.softmax(-1) if logits.shape[-1] > 1 else logits


def _batches(
    rows: Sequence[tuple[Asked, int]], goes_alone: Callable[[Terms], bool]
) -> list[list[tuple[Asked, int]]]:
    """Rows in batches of similar lengths, so that there is little padding; some adapters' in batches of one."""
    lonely = {id(one) for one, _ in rows if goes_alone(one.terms)}
    apart = [[row] for row in rows if id(row[0]) in lonely]
    shared: list[list[tuple[Asked, int]]] = []
    longest = 0
    together = (row for row in rows if id(row[0]) not in lonely)
    for one, number in sorted(together, key=lambda row: -len(row[0].texts[row[1]].ids)):
        if shared and longest * (len(shared[-1]) + 1) <= _BATCH_TOKENS:
            shared[-1].append((one, number))
        else:
            shared.append([(one, number)])
            longest = len(one.texts[number].ids)
    return [*apart, *shared]
