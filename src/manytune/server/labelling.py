"""Classifiers of a server: texts or images of requests to what a base reads, and what runs all classifiers together."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from manytune.data.labels.label_encoder import LabelEncoder
from manytune.data.labels.label_kinds import AnyLabels, labels_from
from manytune.data.labels.labelled import Labels
from manytune.data.labels.numeric_labels import NumericLabels
from manytune.data.labels.word_encoder import WordEncoder, encoder_for
from manytune.data.labels.word_labels import WordLabels
from manytune.engine.classifier import Classifier
from manytune.engine.text_runner import NOT_READ, TextInput, TextRunner, TextTokens
from manytune.errors import ConfigError, DataError
from manytune.server.adapters.registry import Model
from manytune.server.http_errors import HttpError
from manytune.server.images import pixels_of
from manytune.store.base import Base
from manytune.store.classifier_base import text_positions


class Labelling:
    """What `/v1/classify` needs.

    Args:
        base: The base of all classifiers.
        max_chars: The most characters of a text.

    Attributes:
        runner: Runs the classifiers; it is used in the engine's thread.
    """

    def __init__(self, base: Base, *, max_chars: int) -> None:
        self._base = base
        self._max_chars = max_chars
        self._positions = text_positions(base)
        self.runner = TextRunner(self._classifier)
        self._tokenizing = threading.Lock()  # a tokenizer keeps the truncation of its last call

    def inputs(self, texts: Sequence[tuple[str, ...]], model: Model) -> Sequence[TextInput]:
        """What the base reads of a request's texts, or of its images.

        Raises:
            HttpError: As for `tokens` and `pixels_of`.
        """
        if self._base.images is None:
            return self.tokens(texts, model)
        with self._tokenizing:  # one request at a time holds decoded images
            return pixels_of(texts, self._base.images)

    def tokens(self, texts: Sequence[tuple[str, ...]], model: Model) -> list[TextTokens]:
        """Token ids of a request's texts, or of their words, cut where the classifier's training cut them.

        Args:
            texts: One text or two each; or the words of one, for a classifier of words.
            model: The classifier.

        Raises:
            HttpError: A text is too long, or there is one where the classifier takes two, or the other way round.
        """
        manifest = model.manifest
        recipe = {} if manifest is None or manifest.recipe is None else manifest.recipe.get("data", {})
        pairs = bool(recipe.get("text_pair"))
        if not model.classifies_words and recipe and any(len(one) != 1 + pairs for one in texts):
            expected = "two texts, in input and text_pair" if pairs else "one text, without text_pair"
            raise HttpError(
                400, f"this classifier takes {expected}.", code="invalid_value", param="text_pair"
            )
        sums = (sum(map(len, one)) for one in texts)
        sizes = sums if model.classifies_words else (len(text) for one in texts for text in one)
        longest = max(sizes, default=0)
        if longest > self._max_chars:
            message = f"a text has {longest:,} characters; this server accepts up to {self._max_chars:,}."
            raise HttpError(400, message, code="context_length_exceeded", param="input")
        kept = None if manifest is None else (manifest.encoding_options or {}).get("max_prompt")
        limits = [limit for limit in (kept, self._positions) if isinstance(limit, int)]
        encoder = encoder_for(
            self._base.tokenizer,
            WordLabels(()) if model.classifies_words else Labels(()),
            max_length=min(limits, default=None),
            special_tokens_in_text=bool(recipe.get("special_tokens_in_text")),
        )
        found = []
        for number, one in enumerate(texts):
            with self._tokenizing:
                text = _tokens_of(encoder, one)
                ids = text.ids
                if encoder.longest is not None and len(ids) > encoder.longest and isinstance(kept, int):
                    text = _tokens_of(encoder, one, cut=True)
                    ids = text.ids
            if encoder.longest is not None and len(ids) > encoder.longest:
                message = (
                    f"text {number} has {len(ids):,} tokens; at most {encoder.longest:,} can be classified."
                )
                raise HttpError(400, message, code="context_length_exceeded", param="input")
            found.append(text)
        return found

    def _classifier(self) -> Classifier:
        pad_id = None if self._base.images is not None else self._base.tokenizer.pad_token_id
        return Classifier(
            self._base.model, pad_id=pad_id if isinstance(pad_id, int) else None, max_tokens=self._positions
        )


def _tokens_of(encoder: LabelEncoder, texts: Sequence[str], *, cut: bool = False) -> TextTokens:
    """The tokens of a text or two, or of words and where each of these begins."""
    if isinstance(encoder, WordEncoder):
        ids, first = encoder.words(texts, cut=cut)
        return TextTokens(ids, (), tuple(first.get(word, NOT_READ) for word in range(len(texts))))
    return TextTokens(*encoder.tokens(encoder.asked(texts), cut=cut))


def labels_of_model(model: Model, outputs: int) -> AnyLabels:
    """What a head's outputs are, as in its manifest.

    Where there is none, the classes are `LABEL_0` and so on, and a single output is a number as it is.

    Raises:
        ConfigError: Its manifest names another number of them than its head has.
    """
    manifest = model.manifest
    if manifest is None or manifest.labels is None:
        names = tuple(f"LABEL_{number}" for number in range(outputs))
        if model.classifies_words:
            return WordLabels(names)
        return Labels(names) if outputs > 1 else NumericLabels(0.0, 1.0, 0)
    try:
        labels = labels_from(manifest.labels)
    except DataError as error:
        raise ConfigError(f"{model.name}: its manifest's labels: {error}") from error
    if isinstance(labels, WordLabels) is not model.classifies_words:
        raise ConfigError(f"{model.name}: its manifest's labels are of another task than its head.")
    if len(labels.names) != outputs:
        raise ConfigError(
            f"{model.name}: its manifest names {len(labels.names)} labels, and its head has {outputs} outputs."
        )
    return labels
