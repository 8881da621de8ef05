"""Long lists as JSON, written row by row in a thread, so that the event loop does other things in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from fastapi.responses import Response


async def list_response(rows: Iterable[Any], *, field: str = "data", **others: Any) -> Response:
    """An object with a list.

    Args:
        rows: What is in it, as JSON has it; bytes are JSON already. They are made in the thread.
        field: The field that has the list.
        others: The other fields.
    """
    return Response(await asyncio.to_thread(_written, rows, field, others), media_type="application/json")


def _written(rows: Iterable[Any], field: str, others: dict[str, Any]) -> bytes:
    fields = "".join(f"{_text(name)}:{_text(value)}," for name, value in others.items())
    data = b",".join(row if isinstance(row, bytes) else json_bytes(row) for row in rows)
    return f"{{{fields}{_text(field)}:[".encode() + data + b"]}"


def json_bytes(value: Any) -> bytes:
    """A value as JSON."""
    return _text(value).encode()


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
