"""`/v1/compare`: one prompt, many models, one batch; their answers side by side as they come."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from manytune.engine.request import Output
from manytune.server.formats import Collected, usage_of
from manytune.server.http_errors import Refusal
from manytune.server.replies import collect, stream
from manytune.server.routes.chat import fingerprint, prompt_maker
from manytune.server.schema import CompareRequest
from manytune.server.service import Service, Wanted, ask

router = APIRouter(prefix="/v1/compare")


@router.post("")
async def compare(body: CompareRequest, http: Request) -> Response:
    """Ask each model the same. Fields go through each adapter's own template; the base is asked as the first one.

    Events of the stream have the model's name, its place among `models`, the text that came, and with the last one the
    reason and the usage.
    """
    service: Service = http.app.state.service
    if len(set(body.models)) < len(body.models):
        raise Refusal(400, "models names one of them twice.", code="invalid_value", param="models")
    http.state.noted |= {"models": body.models, "user": body.user}
    wanted = await _wanted(service, http, body)
    answers = await ask(service, http, body, wanted)
    versions = [fingerprint(answers, place) for place in range(len(wanted))]
    if not body.stream:
        found = await collect(service, http, answers, len(wanted))
        return JSONResponse(
            {
                "object": "comparison",
                "answers": [
                    {
                        "index": place,
                        "model": body.models[place],
                        "system_fingerprint": versions[place],
                        "text": one.text,
                        "finish_reason": one.reason,
                        "usage": usage_of([one], [one]),
                    }
                    for place, one in enumerate(found)
                ],
            }
        )

    def to_chunk(place: int, output: Output, answer: Collected) -> dict[str, Any] | None:
        answer.add(output, service.end_ids)
        done = output.finish_reason is not None
        return {
            "object": "comparison.chunk",
            "index": place,
            "model": body.models[place],
            "system_fingerprint": versions[place],
            "text": output.text,
            "finish_reason": output.finish_reason,
            "usage": usage_of([answer], [answer]) if done else None,
        }

    return stream(
        service, http, answers, len(wanted), opening=(), to_chunk=to_chunk, closing=lambda found: None
    )


async def _wanted(service: Service, http: Request, body: CompareRequest) -> list[Wanted]:
    prompt = prompt_maker(service, body)
    adapters = [name for name in body.models if name != service.settings.base_name]
    if body.fields is None or not adapters or len(adapters) == len(body.models):
        return [Wanted(name, prompt) for name in body.models]
    http.state.principal.check_model(adapters[0])
    own = service.adapters.resolve(adapters[0])
    first = service.adapters.store.entry(own).manifest
    as_first = lambda manifest: prompt(first if manifest is None else manifest)  # noqa: E731
    return [Wanted(name, as_first) for name in body.models]
