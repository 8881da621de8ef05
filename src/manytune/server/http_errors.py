"""Refusals in the form that OpenAI's clients turn into their exceptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manytune.errors import (
    CacheFullError,
    DataError,
    ManytuneError,
    PeftError,
    RequestError,
    StoreError,
)


class Refusal(Exception):  # noqa: N818  (an answer like others)
    """An answer that says why there is none.

    Args:
        status: Of HTTP.
        message: What was expected, what was found, what to do.
        code: A word for programs.
        param: The field of the request that is to blame.
        retry_after: Seconds after which it may be tried again.
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


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def refusal_of(error: ManytuneError) -> Refusal:
    """A refusal for an error of the engine, the store or a template."""
    message = str(error)
    if isinstance(error, CacheFullError):
        return Refusal(429, message, code="adapter_memory_full", param="model", retry_after=1)
    if isinstance(error, RequestError):
        too_long = "positions" in message or "may come to" in message
        return Refusal(400, message, code="context_length_exceeded" if too_long else "invalid_value")
    if isinstance(error, DataError):
        return Refusal(400, message, code="invalid_prompt")
    if isinstance(error, (StoreError, PeftError)):
        return Refusal(409, message, code="adapter_unusable", param="model")
    return Refusal(500, message, code="internal_error")


def full(retry_after: int = 1) -> Refusal:
    """The queue is full."""
    return Refusal(
        429,
        "the server has as many requests as it takes; try again shortly.",
        code="queue_full",
        retry_after=retry_after,
    )
