"""`/v1/models`: the base and the adapters that a key may use."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from manytune.server.access.auth import Principal
from manytune.server.http_errors import HttpError, for_clients
from manytune.server.json_lists import list_response
from manytune.server.service import Service

router = APIRouter(prefix="/v1/models")


@router.get("")
async def list_models(http: Request) -> Response:
    """All models that the key may use, the base first. Adapters that this server can't run aren't models of it."""
    service: Service = http.app.state.service
    principal: Principal = http.state.principal
    await http.app.state.watcher.ready()
    models = service.adapters.catalogue.models(principal.may_use)
    return await list_response(models, object="list")


@router.get("/{name:path}")
async def show_model(name: str, http: Request) -> Response:
    """One model."""
    service: Service = http.app.state.service
    http.state.principal.check_model(name)
    if name == service.settings.base_name:
        return Response(service.adapters.catalogue.base, media_type="application/json")
    listed = await service.adapters.examined.when_examined(service.adapters.look_up, name)
    reason = service.adapters.catalogue.unservable(listed)
    if reason is not None:
        raise HttpError(409, for_clients(reason), code="adapter_unusable", param="model")
    return Response(listed.model, media_type="application/json")
