"""`/v1/chat/completions`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from manytune.engine.request import Output
from manytune.server.adapters.registry import Model
from manytune.server.answers.formats import Envelope, PartialAnswer, delta_body, usage_of
from manytune.server.answers.replies import collect, stream
from manytune.server.answers.token_entries import TokenEntries
from manytune.server.bodies.chat_schema import ChatRequest, Conversation
from manytune.server.bodies.message_schema import read_messages
from manytune.server.prompts import Prompt, PromptOptions
from manytune.server.service import Answers, PromptMaker, Service, WantedAnswer, generate
from manytune.store.manifest import Manifest

router = APIRouter(prefix="/v1/chat/completions")


@router.post("")
async def chat(body: ChatRequest, http: Request) -> Response:
    """Answer a conversation, encoded as in the adapter's training."""
    service: Service = http.app.state.service
    http.state.log_fields |= {"model": body.model, "user": body.user}
    prompt = prompt_maker(service, body)
    wanted = (WantedAnswer(body.model, prompt, choice) for choice in range(body.n))
    answers = await generate(service, http, body, wanted)
    envelope = Envelope("chatcmpl", body.model, fingerprint_of(answers.models[0]))
    if body.stream:
        return _stream(service, http, body, answers, envelope)
    found = await collect(service, http, answers)
    choices = [
        {
            "index": index,
            "message": one.message,
            "logprobs": TokenEntries(service.prompts.token).chat(one.logprobs) if body.logprobs else None,
            "finish_reason": one.finish_reason,
        }
        for index, one in enumerate(found)
    ]
    return JSONResponse(envelope.wrap("chat.completion", choices, usage=usage_of(found, found[:1])))


def prompt_maker(service: Service, body: Conversation) -> PromptMaker:
    """Makes the prompt of a body for any adapter."""
    segments = read_messages(body.messages)

    def prompt(manifest: Manifest | None) -> Prompt:
        options = PromptOptions(
            kwargs=body.chat_template_kwargs,
            new_tokens=body.token_limit[1] or 1,
            tools=body.described_tools,
            form=body.form(),
            continues=body.continue_final_message,
            skips_special=body.skip_special_tokens,
            special_tokens_in_text=body.special_tokens_in_text,
        )
        if body.fields is not None:
            return service.prompts.fields(body.fields, body.task, manifest, options)
        return service.prompts.conversation(segments, manifest, options)

    return prompt


def fingerprint_of(model: Model) -> str:
    """Identifies the version of an adapter, or the base."""
    return "base" if model.digest is None else f"adapter_{model.digest[:12]}"


def _stream(
    service: Service, http: Request, body: ChatRequest, answers: Answers, envelope: Envelope
) -> Response:
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    more: dict[str, Any] = {"usage": None} if with_usage else {}
    entries = [TokenEntries(service.prompts.token) for _ in range(body.n)]

    def chunk(
        index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return envelope.wrap("chat.completion.chunk", [choice], **more)

    def to_chunk(index: int, output: Output, answer: PartialAnswer) -> dict[str, Any] | None:
        new = answer.add(output)
        calls = [delta_body(one) for one in new.calls]
        delta = {"reasoning_content": new.reasoning, "content": new.text, "tool_calls": calls}
        delta = {key: value for key, value in delta.items() if value}
        if not delta and not new.logprobs and output.finish_reason is None:
            return None
        logprobs = entries[index].chat(new.logprobs) if new.logprobs else None
        return chunk(index, delta, answer.finish_reason, logprobs)

    def closing(found: list[PartialAnswer]) -> dict[str, Any] | None:
        if not with_usage:
            return None
        return envelope.wrap("chat.completion.chunk", [], usage=usage_of(found, found[:1]))

    opening = [chunk(index, {"role": "assistant", "content": ""}) for index in range(body.n)]
    return stream(service, http, answers, opening=opening, to_chunk=to_chunk, closing=closing)
