"""`/v1/completions`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from manytune.engine.request import Output
from manytune.server.formats import Collected, Head, text_logprobs, usage_of
from manytune.server.replies import collect, stream
from manytune.server.routes.chat import fingerprint
from manytune.server.schema import CompletionRequest
from manytune.server.service import Answers, PromptMaker, Service, Wanted, ask

router = APIRouter(prefix="/v1/completions")


@router.post("")
async def complete(body: CompletionRequest, http: Request) -> Response:
    """Go on from bare text or tokens, without a chat template."""
    service: Service = http.app.state.service
    http.state.noted |= {"model": body.model, "user": body.user}
    wanted = (
        Wanted(body.model, _prompt_maker(service, prompt), choice)
        for prompt in body.prompts()
        for choice in range(body.n)
    )
    answers = await ask(service, http, body, wanted)
    count = len(answers.models)
    head = Head("cmpl", body.model, fingerprint(answers))
    if body.stream:
        return _stream(service, http, body, answers, head, count)
    found = await collect(service, http, answers, count)
    choices = [
        {
            "index": place,
            "text": one.text,
            "logprobs": text_logprobs(one.logprobs, service.decode) if body.logprobs is not None else None,
            "finish_reason": one.reason,
        }
        for place, one in enumerate(found)
    ]
    return JSONResponse(head.around("text_completion", choices, usage=usage_of(found, found[:: body.n])))


def _prompt_maker(service: Service, prompt: str | list[int]) -> PromptMaker:
    if isinstance(prompt, str):
        return lambda manifest: service.prompts.text(prompt)
    return lambda manifest: tuple(prompt)


def _stream(
    service: Service, http: Request, body: CompletionRequest, answers: Answers, head: Head, count: int
) -> Response:
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    more: dict[str, Any] = {"usage": None} if with_usage else {}
    offsets = [0] * count

    def to_chunk(place: int, output: Output, answer: Collected) -> dict[str, Any] | None:
        tokens = answer.add(output, service.end_ids)
        if not output.text and not tokens and output.finish_reason is None:
            return None
        logprobs = text_logprobs(tokens, service.decode, offset=offsets[place]) if tokens else None
        offsets[place] += sum(len(service.decode(one.token_id)) for one in tokens)
        choice = {
            "index": place,
            "text": output.text,
            "logprobs": logprobs,
            "finish_reason": output.finish_reason,
        }
        return head.around("text_completion", [choice], **more)

    def closing(found: list[Collected]) -> dict[str, Any] | None:
        if not with_usage:
            return None
        return head.around("text_completion", [], usage=usage_of(found, found[:: body.n]))

    return stream(service, http, answers, count, opening=(), to_chunk=to_chunk, closing=closing)
