"""`/v1/classify`: labels of texts or words, or numbers. Requests that come at the same time share batches."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from manytune.data.labels.label_kinds import AnyLabels
from manytune.data.labels.labelled import Labels
from manytune.data.labels.numeric_labels import NumericLabels
from manytune.engine.text_runner import NOT_READ, TextTokens
from manytune.server.adapters.registry import Model
from manytune.server.answers.word_answers import WordsOfText, row_of_words, words_in
from manytune.server.bodies.schema import ClassifyRequest
from manytune.server.http_errors import HttpError
from manytune.server.json_lists import list_response
from manytune.server.label_choice import choose_labels
from manytune.server.labelling import labels_of_model
from manytune.server.routes.chat import fingerprint_of
from manytune.server.routes.reading import Read, Reading, respond
from manytune.server.service import Service

router = APIRouter(prefix="/v1/classify")

_NOT_FINITE = "the head's outputs are NaN or Inf: the values of its adapter are too large."


@router.post("")
async def classify(body: ClassifyRequest, http: Request) -> Response:
    """The label of each text or image and every label's probability; a regression's number; or those of each word."""
    words = body.labels()
    if words is None:
        return await respond(body, http, partial(_read, body), classifies=True)
    http.state.log_fields |= {"model": body.model, "user": body.user}
    chosen = await choose_labels(http.app.state.service, http, body, words)
    labels = Labels(words.names)
    return await list_response(
        [_row(number, labels, one) for number, one in enumerate(chosen.probabilities)],
        object="list",
        model=body.model,
        system_fingerprint=fingerprint_of(chosen.model),
        usage={"prompt_tokens": chosen.read, "total_tokens": chosen.read},
    )


async def _read(body: ClassifyRequest, asked: Reading[tuple[str, ...]]) -> Read:
    service, model, texts = asked.service, asked.model, asked.texts
    words = _words(body, texts, model)
    texts = texts if words is None else [one.words for one in words]
    inputs = await asyncio.to_thread(service.labelling.inputs, texts, model)
    found = await asked.read(service.labelling.runner, inputs)
    _check_finite(service, model, found)
    if words is None:
        rows = _rows(model, found)
    else:
        rows = _rows_of_words(model, [one for one in inputs if isinstance(one, TextTokens)], found, words)
    return Read(rows, sum(one.size for one in inputs))


def _words(body: ClassifyRequest, texts: Sequence[tuple[str, ...]], model: Model) -> list[WordsOfText] | None:
    """The words of each text, for a classifier of words; None for others.

    Raises:
        HttpError: Words are for another kind of classifier, or a second text for this one.
    """
    if not model.classifies_words:
        if body.words is not None:
            message = f"{model.name} classifies texts, not their words; give input."
            raise HttpError(400, message, code="invalid_value", param="words")
        return None
    if body.text_pair is not None:
        message = f"{model.name} classifies the words of one text; leave text_pair out."
        raise HttpError(400, message, code="invalid_value", param="text_pair")
    return [words_in(one[0]) if body.words is None else WordsOfText(one) for one in texts]


def _rows(model: Model, found: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """The answer's rows, one a text."""
    labels = labels_of_model(model, len(found[0]))
    return [_row(number, labels, one) for number, one in enumerate(found)]


def _rows_of_words(
    model: Model,
    tokens: Sequence[TextTokens],
    found: Sequence[Sequence[float]],
    words: Sequence[WordsOfText],
) -> list[dict[str, Any]]:
    """The same with a label for each word of a text, whose probabilities come one word after the other."""
    read = [sum(place != NOT_READ for place in text.read_at) for text in tokens]
    outputs = sum(map(len, found)) // max(1, sum(read))
    names = labels_of_model(model, outputs).names if outputs else ()
    rows = []
    for number, (one, text, values) in enumerate(zip(words, tokens, found, strict=True)):
        of_words = iter([values[start : start + outputs] for start in range(0, len(values), outputs or 1)])
        each = [[] if place == NOT_READ else next(of_words) for place in text.read_at]
        rows.append(row_of_words(number, one, names, each))
    return rows


def _check_finite(service: Service, model: Model, found: Sequence[Sequence[float]]) -> None:
    if not all(math.isfinite(probability) for row in found for probability in row):
        assert model.adapter is not None
        service.adapters.record_failure(model.name, model.adapter.digest, _NOT_FINITE)
        raise HttpError(409, _NOT_FINITE, code="adapter_unusable", param="model")


def _row(number: int, labels: AnyLabels, found: Sequence[float]) -> dict[str, Any]:
    if isinstance(labels, NumericLabels):
        return {"object": "regression", "index": number, "value": labels.value(found[0])}
    names = labels.names
    best = max(range(len(names)), key=found.__getitem__)
    return {
        "object": "classification",
        "index": number,
        "label": names[best],
        "probability": found[best],
        "probabilities": dict(zip(names, found, strict=True)),
    }
