"""From the body of a request to the stream of its answers; adapters stay in memory for as long as they are needed."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from starlette.requests import Request as HttpRequest

from manytune.engine.request import Output, Request, SamplingParams
from manytune.engine.text_runner import TextRunner
from manytune.errors import ManytuneError
from manytune.server.access.auth import Principal, Visit
from manytune.server.access.tenant_quotas import Reservation, TenantQuotas
from manytune.server.adapters.registry import AdapterRegistry, Model
from manytune.server.answers.formats import PartialAnswer
from manytune.server.bodies.schema import GenerationBody
from manytune.server.grammars import Grammars
from manytune.server.http_errors import HttpError, http_error_of
from manytune.server.labelling import Labelling
from manytune.server.logs import PROMPTS
from manytune.server.loop import EngineLoop, Submission
from manytune.server.metrics import Metrics, Timing
from manytune.server.prompts import Prompt, Prompts
from manytune.server.settings import Settings
from manytune.store.manifest import Manifest

_log = logging.getLogger(PROMPTS)

#: The error of an answer that failed.
NOT_FINITE = "the model's logits for the next token are NaN or Inf: the values of its adapter are too large."

#: Makes the prompt for an adapter with this manifest, or for the base.
PromptMaker = Callable[[Manifest | None], Prompt]


@dataclass(frozen=True)
class WantedAnswer:
    """One answer of a request.

    Attributes:
        model: The name of the model.
        prompt: Makes its prompt.
        choice: Index of the answer among those of the model to this prompt.
    """

    model: str
    prompt: PromptMaker
    choice: int = 0


@dataclass(frozen=True, kw_only=True)
class Service:
    """The parts of a running server.

    Attributes:
        settings: Limits and behaviour.
        adapters: Names to adapters in memory.
        prompts: Makes prompts of what clients send.
        loop: Runs the engine.
        quotas: How many answers each tenant may have waiting or running.
        grammars: Compiles what answers must look like.
        metrics: Counts and times.
        vocabulary: Number of tokens that the base knows.
        positions: Length of the longest sequence that the base takes; None for no limit. Of an encoder-decoder, of the
            longest answer.
        has_encoder: Whether prompts go to an encoder, so that they take no positions of an answer.
        labelling: Runs classifiers; it is used in the engine's thread.
        embedder: Embeds texts, in the engine's thread; None if the base is no encoder.
    """

    settings: Settings
    adapters: AdapterRegistry
    prompts: Prompts
    loop: EngineLoop
    quotas: TenantQuotas
    grammars: Grammars
    metrics: Metrics
    vocabulary: int
    positions: int | None
    labelling: Labelling
    embedder: TextRunner | None = None
    has_encoder: bool = False


class Answers:
    """The answers of a request: their outputs, until all have ended or the client has disconnected.

    Attributes:
        models: Who answers, for each answer.
        prompts: What was asked, for each answer.
    """

    def __init__(self, service: Service, reservation: Reservation, *, is_whole: bool) -> None:
        self._service = service
        self._reservation = reservation
        self._stream = service.loop.stream(is_whole=is_whole)
        self._timings: list[Timing] = []
        self._running: dict[str, int] = {}  # request id to index of the answer
        self._watch: asyncio.Task[None] | None = None
        self._is_closed = False
        self.models: list[Model] = []
        self.prompts: list[Prompt] = []

    async def __aiter__(self) -> AsyncIterator[tuple[int, Output]]:
        """Each output with the index of its answer."""
        async for output in self._stream:
            index = self._running[output.request_id]
            if output.finish_reason is not None:
                del self._running[output.request_id]
                self._reservation.release()
            self._timings[index].observe(output, self._stream.time)
            if output.finish_reason == "failed":
                self._record_failure(self.models[index])
            yield index, output

    def partial(self) -> list[PartialAnswer]:
        """The answers, of which nothing is there yet."""
        return [
            PartialAnswer(one.answers, None if one.calls is None else one.calls()) for one in self.prompts
        ]

    def close(self) -> None:
        """Cancel what hasn't ended, and release the adapters. May be called again."""
        if self._is_closed:
            return
        self._is_closed = True
        self._stream.close()
        self._reservation.release_all()
        for index in self._running.values():
            self._timings[index].end("cancelled")
        for model in self.models:
            self._service.adapters.release(model)
        if self._watch is not None:
            self._watch.cancel()

    def close_on_disconnect(self, http: HttpRequest) -> None:
        """Close as soon as the client disconnects."""

        async def watch() -> None:
            while (await http.receive())["type"] != "http.disconnect":
                pass
            self._watch = None
            self.close()

        self._watch = asyncio.create_task(watch())

    def _record_failure(self, model: Model) -> None:
        if model.adapter is not None:
            self._service.adapters.record_failure(model.name, model.adapter.digest, NOT_FINITE)

    async def _prepare(self, wanted: WantedAnswer, body: GenerationBody, principal: Principal) -> Submission:
        """Acquire the adapter, and make the prompt."""
        service = self._service
        self._timings.append(Timing(service.metrics, wanted.model, principal.name))
        model = await service.adapters.acquire_when_examined(wanted.model)
        self.models.append(model)
        prompt = await asyncio.to_thread(wanted.prompt, model.manifest)
        self.prompts.append(prompt)
        constraint = None
        if prompt.grammar is not None:
            constraint = await service.grammars.compile(prompt.grammar, body.form_field or "grammar")
        params = body.params(_max_new_tokens(service, body, model, len(prompt.tokens)), wanted.choice)
        if prompt.end_id is not None and not params.ignore_eos:
            ends = (*params.stop_token_ids, prompt.end_id)
            params = dataclasses.replace(params, stop_token_ids=ends)
        if service.has_encoder and params.prompt_logprobs is not None:
            raise HttpError(
                400,
                "echo with logprobs: the base of this server is an encoder-decoder, which gives no log probabilities "
                "of its prompt.",
                code="unsupported_parameter",
                param="echo",
            )
        _check_tokens(prompt.tokens, params, service.vocabulary)
        request = Request(
            uuid.uuid4().hex,
            prompt.tokens,
            params,
            model.digest,
            principal.tenant,
            opening=prompt.answers.opening,
            constraint=constraint,
            silent_ids=prompt.silent_ids,
        )
        return Submission(request, model.adapter, model.terms)

    async def _submit(
        self, wanted: Sequence[WantedAnswer], body: GenerationBody, principal: Principal
    ) -> None:
        with self._service.loop.arriving() as arrival:
            submissions = [await self._prepare(one, body, principal) for one in wanted]
            await self._service.loop.submit(submissions, self._stream, arrival)
        self._running = {one.request.id: index for index, one in enumerate(submissions)}


async def generate(
    service: Service, http: HttpRequest, body: GenerationBody, wanted: Iterable[WantedAnswer]
) -> Answers:
    """Submit the requests for all wanted answers, or none.

    Args:
        service: The parts of the server.
        http: The HTTP request; it has the sender, and its end closes the answers.
        body: How to generate.
        wanted: The answers; read no further than `max_choices` allows.

    Raises:
        HttpError: One of them can't be answered.
    """
    principal: Principal = http.state.principal
    limit = service.settings.max_choices
    answers_wanted = list(islice(wanted, limit + 1))
    if len(answers_wanted) > limit:
        raise HttpError(
            400,
            f"{body.count_field} asks for more than {limit} answers, which is this server's limit for one request.",
            code="invalid_value",
            param=body.count_field,
        )
    for name in dict.fromkeys(one.model for one in answers_wanted):
        principal.check_model(name)
    service.loop.check_ready()
    visit: Visit = http.state.visit
    visit.count_answers(len(answers_wanted), body.count_field)
    reserved = service.quotas.reserve(principal.tenant, len(answers_wanted))
    answers = Answers(service, reserved, is_whole=not body.stream)
    try:
        if service.settings.log_prompts:
            prompt = body.model_dump(include={"messages", "fields", "prompt"}, exclude_unset=True)
            _log.info(
                "prompt", extra={"fields": {"request_id": http.state.log_fields["request_id"], **prompt}}
            )
        await answers._submit(answers_wanted, body, principal)
    except ManytuneError as error:
        answers.close()
        raise http_error_of(error) from error
    except BaseException:
        answers.close()
        raise
    answers.close_on_disconnect(http)
    return answers


def _check_tokens(ids: Sequence[int], params: SamplingParams, vocabulary: int) -> None:
    if not ids:
        raise HttpError(
            400,
            "the prompt has no tokens; a model needs at least one to continue from.",
            code="invalid_value",
            param="prompt",
        )
    named = (("prompt", ids), ("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids))
    for name, tokens in named:
        unknown = next((token for token in tokens if not 0 <= token < vocabulary), None)
        if unknown is not None:
            raise HttpError(
                400,
                f"{name} contains token {unknown}; expected tokens from 0 to {vocabulary - 1}.",
                code="invalid_value",
                param=name,
            )


def _max_new_tokens(service: Service, body: GenerationBody, model: Model, prompt_tokens: int) -> int:
    """The token limit of an answer: the requested one, or else what the model has positions for."""
    limit, positions = service.settings.max_answer_tokens, service.positions
    name, requested = body.token_limit
    taken = model.virtual_tokens + (0 if service.has_encoder else prompt_tokens)
    if requested is not None and requested > limit:
        raise HttpError(
            400,
            f"{name} is {requested}; this server allows at most {limit}.",
            code="invalid_value",
            param=name,
        )
    if positions is not None and service.has_encoder and (requested or 0) > positions:
        raise HttpError(
            400,
            f"{name} is {requested}, but the model's decoder has {positions} positions; lower {name}.",
            code="context_length_exceeded",
            param=name,
        )
    if positions is not None and not service.has_encoder and taken + (requested or 0) > positions:
        further = f" and {name} is {requested}" if requested else ""
        raise HttpError(
            400,
            f"the prompt has {taken} tokens{further}, but the model has {positions} positions; shorten the prompt"
            f"{f' or lower {name}' if requested else ''}.",
            code="context_length_exceeded",
            param=name if requested and taken < positions else None,
        )
    if requested is not None:
        return requested
    return limit if positions is None else max(1, min(limit, positions - taken))
