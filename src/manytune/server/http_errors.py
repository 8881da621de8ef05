"""Errors as HTTP answers, in the form that OpenAI's clients turn into their exceptions."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from manytune.errors import (
    CacheFullError,
    ContextLengthError,
    DataError,
    GrammarError,
    ManytuneError,
    PeftError,
    RequestError,
    ShortMemoryError,
    StoreError,
    UnreachableError,
)

_log = logging.getLogger(__name__)
#: A message's beginning that says where, and a path anywhere else in it.
_WHERE = re.compile(r"^(?:[a-z][a-z0-9]+:/|/|[A-Za-z]:\\)[^:]*(?=: )")
_PATH = re.compile(r"(?<![\w./~-])(?:~?/|[A-Za-z]:\\)[^\s'\":;,()<>|]*")


class HttpError(Exception):
    """A request is answered with an error.

    Args:
        status: The HTTP status.
        message: What was expected, what was found, what to do.
        code: A word for programs.
        param: The field of the request that caused it.
        retry_after: Seconds after which the request may be repeated.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    def body(self) -> dict[str, Mapping[str, Any]]:
        """The error object."""
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(
                    self.status, "server_error" if self.status >= 500 else "invalid_request_error"
                ),
                "param": self.param,
                "code": self.code,
            }
        }


#: Where the store is, and what its storage's library says, is for the log.
_STORE_UNREACHABLE = (
    "the store of adapters can't be reached now; adapters that are on this machine already are served meanwhile. Try "
    "again; the server's log says more."
)
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def http_error_of(error: ManytuneError) -> HttpError:
    """The answer for an error of the engine, the store or a template."""
    message = for_clients(str(error))
    match error:
        case CacheFullError():
            return HttpError(429, message, code="adapter_memory_full", param="model", retry_after=1)
        case ShortMemoryError():
            return HttpError(503, message, code="out_of_memory", retry_after=5)
        case UnreachableError():
            return HttpError(503, _STORE_UNREACHABLE, code="store_unreachable", retry_after=5)
        case ContextLengthError():
            return HttpError(400, message, code="context_length_exceeded")
        case GrammarError():
            param = error.where.partition(".")[0] if error.where else None
            return HttpError(400, message, code="invalid_value", param=param)
        case RequestError():
            return HttpError(400, message, code="invalid_value")
        case DataError():
            return HttpError(400, message, code="invalid_prompt")
        case StoreError() | PeftError():
            return HttpError(409, message, code="adapter_unusable", param="model")
    return HttpError(500, message, code="internal_error")


def for_clients(message: str) -> str:
    """A message without where the server keeps its files: of each path the last name. All of it goes to the log."""
    found = _PATH.sub(_last_name, _WHERE.sub(_last_name, message))
    if found != message:
        _log.warning("%s", message)
    return found


def _last_name(path: re.Match[str]) -> str:
    return re.split(r"[/\\]", path[0].rstrip("/\\."))[-1] + ("." if path[0].endswith(".") else "")


def model_not_found(name: str) -> HttpError:
    """A model doesn't exist, or isn't among those of the key: the answer doesn't say which."""
    return HttpError(
        404,
        f"there is no model {name[:100]!r}; GET /v1/models lists them.",
        code="model_not_found",
        param="model",
    )


def queue_full() -> HttpError:
    """A tenant has as many answers waiting or running as the server takes."""
    return HttpError(
        429,
        "as many answers wait or run as the server takes of one tenant; try again shortly.",
        code="queue_full",
        retry_after=1,
    )
