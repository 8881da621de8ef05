"""`/v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from manytune.engine.request import Output, TokenLogprobs
from manytune.server.completion_parts import CompletionParts
from manytune.server.formats import Envelope, PartialAnswer, usage_of
from manytune.server.replies import collect, stream
from manytune.server.routes.chat import fingerprint_of
from manytune.server.schema import CompletionRequest
from manytune.server.service import Answers, PromptMaker, Service, WantedAnswer, generate

router = APIRouter(prefix="/v1/completions")


@router.post("")
async def complete(body: CompletionRequest, http: Request) -> Response:
    """Continue text or tokens, without a chat template."""
    service: Service = http.app.state.service
    http.state.log_fields |= {"model": body.model, "user": body.user}
    wanted = (
        WantedAnswer(body.model, _prompt_maker(service, prompt), choice)
        for prompt in body.prompts()
        for choice in range(body.n)
    )
    answers = await generate(service, http, body, wanted)
    count = len(answers.models)
    envelope = Envelope("cmpl", body.model, fingerprint_of(answers.models[0]))
    if body.stream:
        return _stream(service, http, body, answers, envelope)
    found = await collect(service, http, answers, count)
    choices = [
        {
            "index": index,
            **_content(parts, one.text, one.tokens, one.logprobs, one.prompt_logprobs),
            "finish_reason": one.reason,
        }
        for index, (one, parts) in enumerate(zip(found, _parts(service, body, answers), strict=True))
    ]
    return JSONResponse(envelope.wrap("text_completion", choices, usage=usage_of(found, found[:: body.n])))


def _prompt_maker(service: Service, prompt: str | list[int]) -> PromptMaker:
    if isinstance(prompt, str):
        return lambda manifest: service.prompts.text(prompt)
    return lambda manifest: tuple(prompt)


def _parts(service: Service, body: CompletionRequest, answers: Answers) -> list[CompletionParts]:
    """One for each answer."""
    sent = [prompt for prompt in body.prompts() for _ in range(body.n)]
    return [
        CompletionParts(
            service.prompts,
            has_logprobs=body.logprobs is not None,
            echo=ids if body.echo else None,
            text=prompt if isinstance(prompt, str) else None,
        )
        for prompt, ids in zip(sent, answers.prompts, strict=True)
    ]


def _content(
    parts: CompletionParts,
    text: str,
    tokens: Sequence[int],
    scores: Sequence[TokenLogprobs],
    prompt_scores: Sequence[TokenLogprobs] | None,
) -> dict[str, Any]:
    text, logprobs = parts.part(text, tokens, scores, prompt_scores)
    return {"text": text, "logprobs": logprobs}


def _stream(
    service: Service, http: Request, body: CompletionRequest, answers: Answers, envelope: Envelope
) -> Response:
    count = len(answers.models)
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    more: dict[str, Any] = {"usage": None} if with_usage else {}
    parts = _parts(service, body, answers)

    def to_chunk(index: int, output: Output, answer: PartialAnswer) -> dict[str, Any] | None:
        scores = answer.add(output)
        tokens = [] if output.token_id is None else [output.token_id]
        content = _content(parts[index], output.text, tokens, scores, output.prompt_logprobs)
        if not content["text"] and not content["logprobs"] and output.finish_reason is None:
            return None
        choice = {"index": index, **content, "finish_reason": output.finish_reason}
        return envelope.wrap("text_completion", [choice], **more)

    def closing(found: list[PartialAnswer]) -> dict[str, Any] | None:
        if not with_usage:
            return None
        return envelope.wrap("text_completion", [], usage=usage_of(found, found[:: body.n]))

    return stream(service, http, answers, count, opening=(), to_chunk=to_chunk, closing=closing)
