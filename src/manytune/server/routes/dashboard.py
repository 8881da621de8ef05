"""What the operator's page draws and lists: the last hour, and what admins did."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from manytune.server.access.audit import Audit
from manytune.server.history import History
from manytune.server.json_lists import list_response

router = APIRouter(prefix="/v1")


@router.get("/history")
async def history(
    http: Request, after: Annotated[float, Query(description="Only samples after this time.")] = 0.0
) -> dict[str, Any]:
    """Samples of the last hour, one every ten seconds: requests, tokens, times, the queue and memory.

    `models` and `keys` have a row of each that was asked, or asked, in the interval; `columns` says what is in it.
    """
    found: History = http.app.state.history
    return found.since(after)


@router.get("/audit")
async def audit(http: Request) -> Response:
    """What admins did since the server started, the newest first; of very many, the last 500."""
    actions: Audit = http.app.state.audit
    return await list_response(actions.actions(), object="list")
