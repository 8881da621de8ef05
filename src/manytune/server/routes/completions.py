"""`/v1/completions`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from manytune.engine.request import Output
from manytune.server.answers.completion_parts import CompletionParts
from manytune.server.answers.formats import Envelope, PartialAnswer, usage_of
from manytune.server.answers.replies import collect, stream
from manytune.server.bodies.schema import CompletionRequest
from manytune.server.json_lists import list_response
from manytune.server.prompts import Prompt, PromptOptions
from manytune.server.routes.chat import fingerprint_of
from manytune.server.service import Answers, PromptMaker, Service, WantedAnswer, generate
from manytune.store.manifest import Manifest

router = APIRouter(prefix="/v1/completions")


@router.post("")
async def complete(body: CompletionRequest, http: Request) -> Response:
    """Continue text or tokens, without a chat template."""
    service: Service = http.app.state.service
    http.state.log_fields |= {"model": body.model, "user": body.user}
    wanted = (
        WantedAnswer(body.model, _prompt_maker(service, body, prompt), choice)
        for prompt in body.prompts()
        for choice in range(body.n)
    )
    answers = await generate(service, http, body, wanted)
    envelope = Envelope("cmpl", body.model, fingerprint_of(answers.models[0]))
    if body.stream:
        return _stream(service, http, body, answers, envelope)
    found = await collect(service, http, answers)
    choices = (
        {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": one.reason,
        }
        for index, (one, parts) in enumerate(zip(found, _parts(service, body, answers), strict=True))
        for text, logprobs in [parts.part(one)]
    )
    # With `echo` there may be hundreds of thousands of log probabilities.
    others = envelope.wrap("text_completion", [], usage=usage_of(found, found[:: body.n]))
    del others["choices"]
    return await list_response(choices, field="choices", **others)


def _prompt_maker(service: Service, body: CompletionRequest, prompt: str | list[int]) -> PromptMaker:
    def make(_: Manifest | None) -> Prompt:
        options = PromptOptions(
            form=body.form(),
            skips_special=body.skip_special_tokens,
            special_tokens_in_text=body.special_tokens_in_text,
        )
        return service.prompts.text(prompt, options)

    return make


def _parts(service: Service, body: CompletionRequest, answers: Answers) -> list[CompletionParts]:
    """One for each answer."""
    sent = [prompt for prompt in body.prompts() for _ in range(body.n)]
    return [
        CompletionParts(
            service.prompts,
            has_logprobs=body.logprobs is not None,
            echo=made.tokens if body.echo else None,
            text=prompt if isinstance(prompt, str) else None,
        )
        for prompt, made in zip(sent, answers.prompts, strict=True)
    ]


def _stream(
    service: Service, http: Request, body: CompletionRequest, answers: Answers, envelope: Envelope
) -> Response:
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    more: dict[str, Any] = {"usage": None} if with_usage else {}
    parts = _parts(service, body, answers)

    def to_chunk(index: int, output: Output, answer: PartialAnswer) -> dict[str, Any] | None:
        text, logprobs = parts[index].part(answer.add(output))
        if not text and not logprobs and output.finish_reason is None:
            return None
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": output.finish_reason}
        return envelope.wrap("text_completion", [choice], **more)

    def closing(found: list[PartialAnswer]) -> dict[str, Any] | None:
        if not with_usage:
            return None
        return envelope.wrap("text_completion", [], usage=usage_of(found, found[:: body.n]))

    return stream(service, http, answers, opening=(), to_chunk=to_chunk, closing=closing)
