"""`/v1/classify`: labels of texts or words, or numbers. Requests that come at the same time share batches."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from manytune.data.label_kinds import AnyLabels
from manytune.data.labelled import Labels
from manytune.data.numeric_labels import NumericLabels
from manytune.engine.text_runner import NOT_READ, TextJob, TextTokens
from manytune.errors import ManytuneError
from manytune.server.adapters import Model
from manytune.server.disconnects import unless_disconnected
from manytune.server.http_errors import HttpError, http_error_of
from manytune.server.json_lists import list_response
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
async def classify(body: ClassifyRequest, http: Request) -> Response:
    """The label of each text, and the probability of every label; a regression's number; or the same of each word."""
    service: Service = http.app.state.service
    http.state.log_fields |= {"model": body.model, "user": body.user}
    http.state.principal.check_model(body.model)
    words = body.labels()
    if words is not None:
        chosen = await choose_labels(service, http, body, words)
        rows = [_row(number, Labels(words.names), one) for number, one in enumerate(chosen.probabilities)]
        return await _list_of(body, chosen.model, rows, chosen.read)
    texts = body.texts()
    service.loop.check_ready()
    places = service.places.take(http.state.principal.tenant)
    try:
        return await unless_disconnected(http, _answer(service, http, body, texts))
    finally:
        places.free()


async def _answer(
    service: Service, http: Request, body: ClassifyRequest, texts: Sequence[tuple[str, ...]]
) -> Response:
    timing = Timing(service.metrics, body.model)
    model = await asyncio.to_thread(lambda: service.adapters.acquire(body.model, classifies=True))
    try:
        words = _words(body, texts, model)
        texts = texts if words is None else [one.words for one in words]
        tokens = await asyncio.to_thread(service.labelling.tokens, texts, model)
        job = TextJob(
            texts=tokens, adapter=model.adapter, terms=model.terms, tenant=http.state.principal.tenant
        )
        found = await service.loop.read_texts(service.labelling.runner, job)
        _check_finite(service, model, found)
        rows = _rows(model, found) if words is None else _rows_of_words(model, tokens, found, words)
    except (ManytuneError, HttpError) as error:
        timing.end("refused")
        raise (http_error_of(error) if isinstance(error, ManytuneError) else error) from error
    except asyncio.CancelledError:
        timing.end("cancelled")
        raise
    finally:
        service.adapters.release(model)
    timing.end("stop")
    read = sum(len(text.ids) for text in tokens)
    service.metrics.prompt_tokens.labels(body.model).inc(read)
    return await _list_of(body, model, rows, read)


async def _list_of(
    body: ClassifyRequest, model: Model, rows: Iterable[dict[str, Any]], read: int
) -> Response:
    return await list_response(
        rows,
        object="list",
        model=body.model,
        system_fingerprint=fingerprint_of(model),
        usage={"prompt_tokens": read, "total_tokens": read},
    )


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
