"""`/v1/adapters`: the state of all adapters and what operators do with them, for admins."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from manytune.server.adapters.registry import AdapterRegistry
from manytune.server.adapters.versions import go_back, versions_of
from manytune.server.bodies.body import Body
from manytune.server.http_errors import HttpError
from manytune.server.json_lists import list_response
from manytune.server.middleware import DETAIL
from manytune.server.service import Service

router = APIRouter(prefix="/v1/adapters")


@router.get("")
async def list_adapters(http: Request) -> Response:
    """All adapters with size, errors, and whether they are in memory, pinned and in use."""
    service: Service = http.app.state.service
    await http.app.state.watcher.ready()
    resident = set(service.adapters.cache.resident)
    rows = (
        {
            **_state(service, one.name, one.digest),
            **one.facts,
            "resident": one.digest in resident,
            "tags": one.tags,
            "unservable": service.adapters.catalogue.unservable(one),
            **({} if one.error is None else {"last_error": one.error}),
        }
        for one in service.adapters.catalogue.listed
    )
    return await list_response(rows, object="list")


@router.post("/reload")
async def reload_all(http: Request) -> dict[str, Any]:
    """Check the store for new versions now instead of at the watcher's next interval."""
    changed = await http.app.state.watcher.check()
    return {"changed": changed}


@router.get("/{name:path}/versions")
async def list_versions(name: str, http: Request) -> Response:
    """The versions that a name has had and that are still in the store, with their scores; the present one first."""
    rows = await asyncio.to_thread(lambda: list(versions_of(_registry(http, name), name)))
    return await list_response(rows, object="list")


class BackTo(Body):
    """`POST /v1/adapters/NAME/rollback`."""

    root: str = Field(pattern="^[0-9a-f]{64}$", description="The version, as `GET …/versions` lists it.")


@router.post("/{name:path}/rollback")
async def roll_back(name: str, body: BackTo, http: Request) -> dict[str, Any]:
    """Have a name mean a version that it had before; running answers continue with theirs."""
    former = await asyncio.to_thread(go_back, _registry(http, name), name, body.root)
    http.state.log_fields[DETAIL] = f"{name}: {former[:12]} to {body.root[:12]}"
    await http.app.state.watcher.check()
    return {"id": name, "root": body.root, "former": former}


@router.post("/{name:path}/load")
async def load(name: str, http: Request) -> dict[str, Any]:
    """Load an adapter into memory before it is requested."""
    adapter = await asyncio.to_thread(_registry(http, name).load, name)
    return {"id": name, "root": adapter.digest, "resident": True}


@router.post("/{name:path}/unload")
async def unload(name: str, http: Request) -> dict[str, Any]:
    """Remove an adapter from memory; the next request for it loads it again."""
    was_resident = await asyncio.to_thread(_registry(http, name).unload, name)
    await http.app.state.watcher.forget_absent()
    return {"id": name, "unloaded": was_resident}


@router.post("/{name:path}/pin")
async def pin(name: str, http: Request) -> dict[str, Any]:
    """Keep an adapter in memory until it is unpinned; new versions take the place of former ones."""
    adapter = await asyncio.to_thread(_registry(http, name).pin, name)
    return {"id": name, "root": adapter.digest, "pinned": True}


@router.post("/{name:path}/unpin")
async def unpin(name: str, http: Request) -> dict[str, Any]:
    """Undo a pin."""
    service: Service = http.app.state.service
    return {"id": name, "pinned": False, "was_pinned": service.adapters.unpin(name)}


@router.post("/{name:path}/verify")
async def verify(name: str, http: Request) -> dict[str, Any]:
    """Check an adapter's files, values and base on disk."""
    found = await asyncio.to_thread(_registry(http, name).verify, name)
    return {
        "id": name,
        "files": found.files,
        "tensors": found.tensors,
        "sound": True,
        "note": found.note,
        "unservable": found.unservable,
    }


def _state(service: Service, name: str, digest: str) -> dict[str, Any]:
    """The state of an adapter in the server."""
    failures = service.adapters.failures(name, digest)
    return {
        "id": name,
        "root": digest,
        "pinned": service.adapters.is_pinned(name),
        "requests": service.adapters.in_use(digest),
        "errors": 0 if failures is None else failures.count,
        "last_error": None if failures is None else failures.last,
    }


def _registry(http: Request, name: str) -> AdapterRegistry:
    """The adapters of the server.

    Raises:
        HttpError: The name is the base's.
    """
    service: Service = http.app.state.service
    if name == service.settings.base_name:
        raise HttpError(
            400, f"{name} is the base, which is always in memory.", code="invalid_value", param="name"
        )
    return service.adapters
