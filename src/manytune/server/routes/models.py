"""`/v1/models`: the base and the adapters that a key may use."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jinja2
from fastapi import APIRouter, Request

from manytune.data.rendering import named_fields
from manytune.server.auth import Principal
from manytune.server.http_errors import HttpError, for_clients
from manytune.server.service import Service
from manytune.store.store import StoreEntry

router = APIRouter(prefix="/v1/models")


@router.get("")
async def list_models(http: Request) -> dict[str, Any]:
    """All models that the key may use, the base first. Adapters that this server can't run aren't models of it."""
    service: Service = http.app.state.service
    principal: Principal = http.state.principal
    adapters = await asyncio.to_thread(
        lambda: [
            (name, entry)
            for name, entry in service.adapters.entries()
            if service.adapters.unservable(entry) is None
        ]
    )
    every = [_base(service), *(_model(name, entry, service) for name, entry in adapters)]
    return {"object": "list", "data": [model for model in every if principal.may_use(model["id"])]}


@router.get("/{name:path}")
async def show_model(name: str, http: Request) -> dict[str, Any]:
    """One model."""
    service: Service = http.app.state.service
    http.state.principal.check_model(name)
    if name == service.settings.base_name:
        return _base(service)
    digest = await asyncio.to_thread(service.adapters.resolve, name)
    entry = await asyncio.to_thread(service.adapters.store.entry, digest)
    reason = await asyncio.to_thread(service.adapters.unservable, entry)
    if reason is not None:
        raise HttpError(409, for_clients(reason), code="adapter_unusable", param="model")
    return _model(name, entry, service)


def _base(service: Service) -> dict[str, Any]:
    return {
        "id": service.settings.base_name,
        "object": "model",
        "created": 0,
        "owned_by": "manytune",
        "parent": None,
    }


def _model(name: str, entry: StoreEntry, service: Service) -> dict[str, Any]:
    """A model; in addition to OpenAI's keys, with its version, and its templates' fields and tasks, or its labels."""
    manifest = entry.manifest
    templates: list[Mapping[str, str]] = [*(manifest.templates or {}).values()]
    if manifest.template is not None:
        templates.append(manifest.template)
    return {
        "id": name,
        "object": "model",
        "created": _seconds(manifest.created),
        "owned_by": "manytune",
        "parent": service.settings.base_name,
        "root": entry.digest,
        "method": manifest.method,
        "fields": sorted({one for parts in templates for one in _fields(parts)}),
        "tasks": list(manifest.templates or {}),
        "labels": list((manifest.labels or {}).get("names", ())),
    }


def _fields(parts: Mapping[str, str]) -> frozenset[str]:
    texts = [parts[part] for part in ("prompt", "system") if part in parts]
    try:
        return frozenset(one for text in texts for one in named_fields(text)) - {"fields"}
    except (jinja2.TemplateError, RecursionError):  # a malformed template: requests with fields get the error
        return frozenset()


def _seconds(created: str) -> int:
    try:
        return int(datetime.fromisoformat(created).timestamp())
    except (ValueError, OverflowError, OSError):
        return 0
