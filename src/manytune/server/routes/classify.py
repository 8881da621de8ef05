"""`/v1/classify`: labels of texts or words, or numbers. Requests that come at the same time share batches."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request

from manytune.data.label_kinds import AnyLabels
from manytune.data.labelled import Labels
from manytune.data.numeric_labels import NumericLabels
from manytune.engine.classifier import Asked
from manytune.errors import ManytuneError
from manytune.server.adapters import Model
from manytune.server.http_errors import HttpError, http_error_of
from manytune.server.label_choice import choose_labels
from manytune.server.labelling import labels_of_model
from manytune.server.metrics import Timing
from manytune.server.routes.chat import fingerprint_of
from manytune.server.schema import ClassifyRequest
from manytune.server.service import Service
from manytune.server.word_answers import WordsOfText, row_of_words, words_in

router = APIRouter(prefix="/v1/classify")

_NOT_FINITE = "the head's outputs are NaN or Inf: the values of its adapter are too large."


@router.post("")
async def classify(body: ClassifyRequest, http: Request) -> dict[str, Any]:
    """The label of each text, and the probability of every label; a regression's number; or the same of each word."""
    service: Service = http.app.state.service
    http.state.log_fields |= {"model": body.model, "user": body.user}
    http.state.principal.check_model(body.model)
    words_of_labels = body.labels()
    if words_of_labels is not None:
        chosen = await choose_labels(service, http, body, words_of_labels)
        labels = Labels(words_of_labels.names)
        rows = [
            _row(service, chosen.model, number, labels, one)
            for number, one in enumerate(chosen.probabilities)
        ]
        return _answer(body, chosen.model, rows, chosen.read)
    texts = body.texts()
    service.loop.check_capacity()
    timing = Timing(service.metrics, body.model)
    model = await asyncio.to_thread(lambda: service.adapters.acquire(body.model, classifies=True))
    try:
        words = _words(body, texts, model)
        texts = texts if words is None else [one.words for one in words]
        tokens = await asyncio.to_thread(service.labelling.tokens, texts, model)
        asked = service.labelling.wait(model, tokens)
        try:
            await service.loop.call_as_request(lambda _: service.labelling.run())
        finally:
            service.labelling.forget(asked)
        rows = _rows(service, model, asked) if words is None else _rows_of_words(service, model, asked, words)
    except (ManytuneError, HttpError) as error:
        timing.end("refused")
        raise (http_error_of(error) if isinstance(error, ManytuneError) else error) from error
    finally:
        service.adapters.release(model)
    timing.end("stop")
    read = sum(len(text.ids) for text in tokens)
    service.metrics.prompt_tokens.labels(body.model).inc(read)
    return _answer(body, model, rows, read)


def _answer(body: ClassifyRequest, model: Model, rows: list[dict[str, Any]], read: int) -> dict[str, Any]:
    return {
        "object": "list",
        "model": body.model,
        "system_fingerprint": fingerprint_of(model),
        "data": rows,
        "usage": {"prompt_tokens": read, "total_tokens": read},
    }


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


def _rows_of_words(
    service: Service, model: Model, asked: Asked, words: Sequence[WordsOfText]
) -> list[dict[str, Any]]:
    """The answer's rows, one a text, with a label for each of its words."""
    _require_answered(asked)
    assert asked.words is not None
    read = [value for row in asked.words for values in row for value in values]
    if not all(map(math.isfinite, read)):
        raise _not_finite(service, model)
    outputs = next((len(values) for row in asked.words for values in row if values), None)
    names = () if outputs is None else labels_of_model(model, outputs).names
    return [
        row_of_words(number, one, names, found)
        for number, (one, found) in enumerate(zip(words, asked.words, strict=True))
    ]


def _rows(service: Service, model: Model, asked: Asked) -> list[dict[str, Any]]:
    """The answer's rows, one a text."""
    probabilities = _require_answered(asked)
    labels = labels_of_model(model, len(probabilities[0]))
    return [_row(service, model, number, labels, found) for number, found in enumerate(probabilities)]


def _require_answered(asked: Asked) -> list[list[float]]:
    if asked.error is not None:
        raise asked.error
    if asked.probabilities is None:
        raise HttpError(500, "the classification failed; the server's log has why.", code="internal_error")
    return asked.probabilities


def _not_finite(service: Service, model: Model) -> HttpError:
    """The error of an adapter whose values are too large, which is taken down as its failure."""
    assert model.adapter is not None
    service.adapters.record_failure(model.name, model.adapter.digest, _NOT_FINITE)
    return HttpError(409, _NOT_FINITE, code="adapter_unusable", param="model")


def _row(
    service: Service, model: Model, number: int, labels: AnyLabels, found: Sequence[float]
) -> dict[str, Any]:
    if not all(map(math.isfinite, found)):
        raise _not_finite(service, model)
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
