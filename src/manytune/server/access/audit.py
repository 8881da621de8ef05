"""What admins did to a server: the last actions in memory, and every one in the log."""

from __future__ import annotations

import logging
from collections import deque
from datetime import UTC, datetime
from typing import Any

_log = logging.getLogger(__name__)
_MOST = 500


class Audit:
    """The last actions of admins, the newest first."""

    def __init__(self) -> None:
        self._actions: deque[dict[str, Any]] = deque(maxlen=_MOST)

    def record(
        self, *, key: str, method: str, path: str, status: int, request_id: str, detail: str | None
    ) -> None:
        """Keep an action, whether it was done or refused, and write it to the log.

        Args:
            key: The name of the admin's key.
            method: The HTTP method.
            path: What was asked for, such as `/v1/adapters/support/unload`.
            status: The HTTP status of the answer.
            request_id: As in the log and in the answer's headers.
            detail: What it changed, if the route says so.
        """
        action = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "key": key,
            "method": method,
            "path": path[:300],
            "status": status,
            "request_id": request_id,
            "detail": detail,
        }
        self._actions.appendleft(action)
        _log.info("admin action", extra={"fields": {**action}})

    def actions(self) -> list[dict[str, Any]]:
        """The last actions, the newest first."""
        return list(self._actions)
