"""`/v1/compare`: one prompt for many models in one batch, with their answers in one stream."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from manytune.engine.request import Output
from manytune.server.answers.formats import PartialAnswer, usage_of
from manytune.server.answers.replies import collect, stream
from manytune.server.bodies.chat_schema import CompareRequest
from manytune.server.http_errors import HttpError
from manytune.server.prompts import Prompt
from manytune.server.routes.chat import fingerprint_of, prompt_maker
from manytune.server.service import Service, WantedAnswer, generate
from manytune.store.manifest import Manifest

router = APIRouter(prefix="/v1/compare")


@router.post("")
async def compare(body: CompareRequest, http: Request) -> Response:
    """Give each model the same prompt. Fields go through each adapter's template; the base gets the first adapter's.

    Events of the stream have the model's name, its index among `models` and the new text; the last one of each model
    has the finish reason and the usage, and for fields the messages that the template made of them.
    """
    service: Service = http.app.state.service
    if len(set(body.models)) < len(body.models):
        raise HttpError(400, "models contains one of them twice.", code="invalid_value", param="models")
    http.state.log_fields |= {"models": body.models, "user": body.user}
    wanted = await _wanted(service, http, body)
    answers = await generate(service, http, body, wanted)
    labels = [
        {"index": index, "model": name, "system_fingerprint": fingerprint_of(model)}
        for index, (name, model) in enumerate(zip(body.models, answers.models, strict=True))
    ]
    rendered = [
        {"prompt": [{"role": one.role, "content": one.text} for one in prompt.rendered]}
        if prompt.rendered
        else {}
        for prompt in answers.prompts
    ]
    if not body.stream:
        found = await collect(service, http, answers)
        return JSONResponse(
            {
                "object": "comparison",
                "answers": [
                    {
                        **label,
                        "text": one.text,
                        **({"reasoning_content": one.reasoning} if one.reasoning else {}),
                        "finish_reason": one.reason,
                        "usage": usage_of([one], [one]),
                        **made,
                    }
                    for label, one, made in zip(labels, found, rendered, strict=True)
                ],
            }
        )

    def to_chunk(index: int, output: Output, answer: PartialAnswer) -> dict[str, Any] | None:
        new = answer.add(output)
        is_last = output.finish_reason is not None
        return {
            "object": "comparison.chunk",
            **labels[index],
            "text": new.text,
            **({"reasoning_content": new.reasoning} if new.reasoning else {}),
            "finish_reason": output.finish_reason,
            "usage": usage_of([answer], [answer]) if is_last else None,
            **(rendered[index] if is_last else {}),
        }

    return stream(service, http, answers, opening=(), to_chunk=to_chunk, closing=lambda found: None)


async def _wanted(service: Service, http: Request, body: CompareRequest) -> list[WantedAnswer]:
    prompt = prompt_maker(service, body)
    adapters = [name for name in body.models if name != service.settings.base_name]
    if body.fields is None or not adapters or len(adapters) == len(body.models):
        return [WantedAnswer(name, prompt) for name in body.models]
    http.state.principal.check_model(adapters[0])
    first = await service.adapters.examined.when_examined(service.adapters.manifest_of, adapters[0])

    def prompt_for(manifest: Manifest | None) -> Prompt:
        return prompt(first if manifest is None else manifest)

    return [WantedAnswer(name, prompt_for) for name in body.models]
