"""From a request's body to the stream of its answers, with the adapters held for as long as they are needed."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from starlette.requests import Request as HttpRequest

from manytune.engine.request import Output, Request
from manytune.errors import ManytuneError
from manytune.server.adapters import Adapters, Model
from manytune.server.auth import Principal
from manytune.server.http_errors import Refusal, refusal_of
from manytune.server.loop import Asked, EngineLoop, Stream
from manytune.server.metrics import Metrics, Timing
from manytune.server.prompts import Prompts
from manytune.server.schema import Sampling
from manytune.server.settings import Settings
from manytune.store.manifest import Manifest

_log = logging.getLogger("manytune.server.prompts")

#: What is said of an answer that failed.
NOT_FINITE = (
    "the model's values for the next token aren't finite: its adapter drives the base out of all bounds."
)

#: Makes a prompt's tokens for the adapter with a manifest, or for the base.
PromptMaker = Callable[[Manifest | None], tuple[int, ...]]


@dataclass(frozen=True)
class Wanted:
    """One answer that a request asks for."""

    model: str
    prompt: PromptMaker
    choice: int = 0


@dataclass(frozen=True)
class Service:
    """The parts of a running server.

    Attributes:
        settings: What the operator decided.
        adapters: Names to adapters in memory.
        prompts: What clients send to tokens.
        loop: Runs the engine.
        metrics: What is counted.
        end_ids: Tokens that end an answer.
        positions: The longest sequence that the base takes; None for no limit.
        decode: Text of one token.
    """

    settings: Settings
    adapters: Adapters
    prompts: Prompts
    loop: EngineLoop
    metrics: Metrics
    end_ids: frozenset[int]
    positions: int | None
    decode: Callable[[int], str]


class Answers:
    """What came of the wanted answers: their outputs, until all have ended or the client has gone."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stream = Stream(service.loop)
        self._timings: list[Timing] = []
        self._places: dict[str, int] = {}
        self._watch: asyncio.Task[None] | None = None
        self._closed = False
        self.models: list[Model] = []

    async def __aiter__(self) -> AsyncIterator[tuple[int, Output]]:
        """Each output with the place of its answer among the wanted ones."""
        async for output in self._stream:
            place = (
                self._places.pop(output.request_id)
                if output.finish_reason
                else self._places[output.request_id]
            )
            self._timings[place].note(output)
            if output.finish_reason == "failed":
                self._note_failure(self.models[place])
            yield place, output

    def close(self) -> None:
        """Give up what hasn't ended, and let the adapters go. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._stream.close()
        for place in self._places.values():
            self._timings[place].end("cancelled")
        for model in self.models:
            self._service.adapters.release(model)
        if self._watch is not None:
            self._watch.cancel()

    def close_when_gone(self, http: HttpRequest) -> None:
        """Close as soon as the client hangs up."""

        async def watch() -> None:
            while (await http.receive())["type"] != "http.disconnect":
                pass
            self._watch = None
            self.close()

        self._watch = asyncio.create_task(watch())

    def _note_failure(self, model: Model) -> None:
        if model.adapter is not None:
            self._service.adapters.note_failure(model.name, model.adapter.id, NOT_FINITE)

    async def _prepare(self, wanted: Wanted, body: Sampling, principal: Principal) -> Asked:
        """Hold the adapter, and make the prompt."""
        service = self._service
        self._timings.append(Timing(service.metrics, wanted.model))
        model = await asyncio.to_thread(service.adapters.acquire, wanted.model)
        self.models.append(model)
        manifest = None if model.adapter is None else model.adapter.manifest
        ids = await asyncio.to_thread(wanted.prompt, manifest)
        request = Request(
            uuid.uuid4().hex,
            ids,
            body.params(_limit(service, body, model, len(ids)), wanted.choice),
            None if model.adapter is None else model.adapter.id,
            principal.tenant,
        )
        return Asked(request, model.adapter)

    async def _submit(self, wanted: Sequence[Wanted], body: Sampling, principal: Principal) -> None:
        asked = [await self._prepare(one, body, principal) for one in wanted]
        await self._service.loop.submit(asked, self._stream)
        self._places = {one.request.id: place for place, one in enumerate(asked)}


async def ask(service: Service, http: HttpRequest, body: Sampling, each: Iterable[Wanted]) -> Answers:
    """Submit all wanted answers, or none.

    Args:
        service: The server.
        http: The request that brought the body; it says who asks, and when nobody waits for the answer any more.
        body: How to answer.
        each: What to answer; it is read no further than the server answers at once.

    Raises:
        Refusal: One of them can't be answered.
    """
    principal: Principal = http.state.principal
    most = service.settings.max_choices
    wanted = list(islice(each, most + 1))
    if len(wanted) > most:
        raise Refusal(
            400,
            f"this server gives {most} answers at once, and more were asked for.",
            code="invalid_value",
            param="n",
        )
    for name in dict.fromkeys(one.model for one in wanted):
        principal.check_model(name)
    service.loop.check_room(len(wanted))
    if service.settings.log_prompts:
        asked = body.model_dump(include={"messages", "fields", "prompt"}, exclude_none=True)
        _log.info("prompt", extra={"noted": {"request_id": http.state.noted["request_id"], **asked}})
    answers = Answers(service)
    try:
        await answers._submit(wanted, body, principal)
    except ManytuneError as error:
        answers.close()
        raise refusal_of(error) from error
    except BaseException:
        answers.close()
        raise
    answers.close_when_gone(http)
    return answers


def _limit(service: Service, body: Sampling, model: Model, prompt: int) -> int:
    """How many tokens an answer may have: what was asked for, or else what fits."""
    most = service.settings.max_answer_tokens
    if body.wanted_tokens is not None:
        if body.wanted_tokens > most:
            raise Refusal(
                400,
                f"max_tokens is {body.wanted_tokens}; this server gives {most} at most.",
                code="invalid_value",
                param="max_tokens",
            )
        return body.wanted_tokens
    if service.positions is None:
        return most
    return max(1, min(most, service.positions - prompt - model.virtual_tokens))
