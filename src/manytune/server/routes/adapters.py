"""`/v1/adapters`: the operator's view, for admins."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from fastapi import APIRouter, Request

from manytune.server.http_errors import Refusal
from manytune.server.service import Service

router = APIRouter(prefix="/v1/adapters")


@router.get("")
async def list_adapters(http: Request) -> dict[str, Any]:
    """All adapters with their size, whether they are in memory, pinned and answering, and what went wrong."""
    service: Service = http.app.state.service
    entries = await asyncio.to_thread(lambda: list(service.adapters.entries()))
    unreadable = await asyncio.to_thread(service.adapters.unreadable)
    resident = set(service.adapters.cache.resident)
    readable = [
        {
            **_state(service, name, entry.id),
            "method": entry.manifest.method,
            "created": entry.manifest.created,
            "bytes": entry.nbytes,
            "resident": entry.id in resident,
            "scores": {
                key: score if math.isfinite(score) else None for key, score in entry.manifest.scores.items()
            },
        }
        for name, entry in entries
    ]
    others = [
        {
            **_state(service, name, own),
            "method": None,
            "created": None,
            "bytes": None,
            "resident": False,
            "scores": {},
            "last_error": message,
        }
        for name, (own, message) in unreadable.items()
    ]
    return {"object": "list", "data": sorted([*readable, *others], key=lambda one: one["id"])}


@router.post("/reload")
async def reload_all(http: Request) -> dict[str, Any]:
    """Look at the store now instead of at the watcher's next turn."""
    changed = await http.app.state.watcher.look()
    return {"changed": changed}


@router.post("/{name}/load")
async def load(name: str, http: Request) -> dict[str, Any]:
    """Bring an adapter into memory before it is asked for."""
    service: Service = http.app.state.service
    _not_base(service, name)
    adapter = await asyncio.to_thread(service.adapters.load, name)
    return {"id": name, "root": adapter.id, "resident": True}


@router.post("/{name}/unload")
async def unload(name: str, http: Request) -> dict[str, Any]:
    """Let an adapter's memory go; the next request for it loads it again."""
    service: Service = http.app.state.service
    _not_base(service, name)
    went = await asyncio.to_thread(service.adapters.unload, name)
    await http.app.state.watcher.forget_absent()
    return {"id": name, "unloaded": went}


@router.post("/{name}/pin")
async def pin(name: str, http: Request) -> dict[str, Any]:
    """Keep an adapter in memory, through new versions, until it is unpinned."""
    service: Service = http.app.state.service
    _not_base(service, name)
    adapter = await asyncio.to_thread(service.adapters.pin, name)
    return {"id": name, "root": adapter.id, "pinned": True}


@router.post("/{name}/unpin")
async def unpin(name: str, http: Request) -> dict[str, Any]:
    """Take back a pin."""
    service: Service = http.app.state.service
    return {"id": name, "pinned": False, "was_pinned": service.adapters.unpin(name)}


@router.post("/{name}/verify")
async def verify(name: str, http: Request) -> dict[str, Any]:
    """Check an adapter's files, values and base on disk."""
    service: Service = http.app.state.service
    _not_base(service, name)
    found = await asyncio.to_thread(service.adapters.verify, name)
    return {"id": name, "files": found.files, "tensors": found.tensors, "sound": True, "note": found.note}


def _state(service: Service, name: str, own: str) -> dict[str, Any]:
    """What the server itself knows of an adapter."""
    failures = service.adapters.failures(name, own)
    return {
        "id": name,
        "root": own,
        "pinned": service.adapters.is_pinned(name),
        "requests": service.adapters.in_use(own),
        "errors": 0 if failures is None else failures.count,
        "last_error": None if failures is None else failures.last,
    }


def _not_base(service: Service, name: str) -> None:
    if name == service.settings.base_name:
        raise Refusal(
            400, f"{name} is the base, which is always in memory.", code="invalid_value", param="name"
        )
