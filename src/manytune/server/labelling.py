"""Classifiers of a server: texts of requests to token ids, and what runs them, requests of all classifiers together."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from manytune.data.label_encoder import LabelEncoder
from manytune.data.labelled import Labels
from manytune.engine.classifier import Classifier
from manytune.engine.text_runner import TextRunner, TextTokens
from manytune.errors import ConfigError, DataError
from manytune.server.adapters import Model
from manytune.server.http_errors import HttpError
from manytune.store.base import Base
from manytune.store.classifier_base import text_positions
from manytune.store.manifest import Manifest


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

    def tokens(self, texts: Sequence[tuple[str, ...]], manifest: Manifest | None) -> list[TextTokens]:
        """Token ids of a request's texts, cut where the classifier's training cut them.

        Raises:
            HttpError: A text is too long, or there is one where the classifier takes two, or the other way round.
        """
        recipe = {} if manifest is None or manifest.recipe is None else manifest.recipe.get("data", {})
        pairs = bool(recipe.get("text_pair"))
        if recipe and any(len(one) != 1 + pairs for one in texts):
            expected = "two texts, in input and text_pair" if pairs else "one text, without text_pair"
            raise HttpError(
                400, f"this classifier takes {expected}.", code="invalid_value", param="text_pair"
            )
        longest = max((len(text) for one in texts for text in one), default=0)
        if longest > self._max_chars:
            message = f"a text has {longest:,} characters; this server accepts up to {self._max_chars:,}."
            raise HttpError(400, message, code="context_length_exceeded", param="input")
        kept = None if manifest is None else (manifest.encoding_options or {}).get("max_prompt")
        limits = [limit for limit in (kept, self._positions) if isinstance(limit, int)]
        encoder = LabelEncoder(
            self._base.tokenizer,
            Labels(()),
            max_length=min(limits, default=None),
            special_tokens_in_text=bool(recipe.get("special_tokens_in_text")),
        )
        found = []
        for number, one in enumerate(texts):
            with self._tokenizing:
                asked = encoder.asked(one)
                ids, kinds = encoder.tokens(asked)
                if encoder.longest is not None and len(ids) > encoder.longest and isinstance(kept, int):
                    ids, kinds = encoder.tokens(asked, cut=True)
            if encoder.longest is not None and len(ids) > encoder.longest:
                message = (
                    f"text {number} has {len(ids):,} tokens; at most {encoder.longest:,} can be classified."
                )
                raise HttpError(400, message, code="context_length_exceeded", param="input")
            found.append(TextTokens(ids, kinds))
        return found

    def _classifier(self) -> Classifier:
        pad_id = self._base.tokenizer.pad_token_id
        return Classifier(
            self._base.model, pad_id=pad_id if isinstance(pad_id, int) else None, max_tokens=self._positions
        )


def labels_of_model(model: Model, classes: int) -> list[str]:
    """The names of a classifier's classes, as in its manifest; `LABEL_0` and so on where there is none.

    Raises:
        ConfigError: Its manifest names another number of them than its head has.
    """
    manifest = model.manifest
    if manifest is None or manifest.labels is None:
        return [f"LABEL_{number}" for number in range(classes)]
    try:
        names = Labels.from_dict(manifest.labels).names
    except DataError as error:
        raise ConfigError(f"{model.name}: its manifest's labels: {error}") from error
    if len(names) != classes:
        raise ConfigError(
            f"{model.name}: its manifest names {len(names)} labels, and its head has {classes} outputs."
        )
    return list(names)
