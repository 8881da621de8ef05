"""`/v1/chat/completions`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from manytune.engine.request import Output
from manytune.server.adapters import Model
from manytune.server.formats import Collected, Head, chat_logprobs, usage_of
from manytune.server.replies import collect, stream
from manytune.server.schema import ChatRequest, Conversation
from manytune.server.service import Answers, PromptMaker, Service, Wanted, ask

router = APIRouter(prefix="/v1/chat/completions")


@router.post("")
async def chat(body: ChatRequest, http: Request) -> Response:
    """Answer a conversation, in the encoding that the adapter was trained in."""
    service: Service = http.app.state.service
    http.state.noted |= {"model": body.model, "user": body.user}
    prompt = prompt_maker(service, body)
    answers = await ask(service, http, body, (Wanted(body.model, prompt, choice) for choice in range(body.n)))
    head = Head("chatcmpl", body.model, fingerprint(answers))
    if body.stream:
        return _stream(service, http, body, answers, head)
    found = await collect(service, http, answers, body.n)
    choices = [
        {
            "index": place,
            "message": {"role": "assistant", "content": one.text, "refusal": None},
            "logprobs": chat_logprobs(one.logprobs, service.decode) if body.logprobs else None,
            "finish_reason": one.reason,
        }
        for place, one in enumerate(found)
    ]
    return JSONResponse(head.around("chat.completion", choices, usage=usage_of(found, found[:1])))


def prompt_maker(service: Service, body: Conversation) -> PromptMaker:
    """How a body becomes the prompt of whichever adapter answers."""
    fields = body.fields
    if fields is not None:
        return lambda manifest: service.prompts.fields(fields, body.task, manifest)
    segments = [message.segment() for message in body.messages]
    return lambda manifest: service.prompts.conversation(segments, manifest)


def fingerprint(answers: Answers, place: int = 0) -> str:
    """Names the version of the adapter that answers."""
    return fingerprint_of(answers.models[place])


def fingerprint_of(model: Model) -> str:
    """Names the version of an adapter, or the base."""
    return "base" if model.adapter is None else f"adapter_{model.adapter.id[:12]}"


def _stream(service: Service, http: Request, body: ChatRequest, answers: Answers, head: Head) -> Response:
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    more: dict[str, Any] = {"usage": None} if with_usage else {}

    def chunk(
        place: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        choice = {"index": place, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return head.around("chat.completion.chunk", [choice], **more)

    def to_chunk(place: int, output: Output, answer: Collected) -> dict[str, Any] | None:
        tokens = answer.add(output, service.end_ids)
        if not output.text and not tokens and output.finish_reason is None:
            return None
        logprobs = chat_logprobs(tokens, service.decode) if tokens else None
        return chunk(place, {"content": output.text} if output.text else {}, output.finish_reason, logprobs)

    def closing(found: list[Collected]) -> dict[str, Any] | None:
        if not with_usage:
            return None
        return head.around("chat.completion.chunk", [], usage=usage_of(found, found[:1]))

    opening = [chunk(place, {"role": "assistant", "content": ""}) for place in range(body.n)]
    return stream(service, http, answers, body.n, opening=opening, to_chunk=to_chunk, closing=closing)
