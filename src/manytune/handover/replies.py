"""vLLM's answers as clients get them: the model's name for the version's, counted and timed on the way."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from manytune.handover.versions import Version
from manytune.server.http_errors import for_clients
from manytune.server.metrics import Timing

_DONE = b"data: [DONE]"
_DATA = b"data: "


class Reply:
    """One answer of vLLM's on its way to a client.

    Args:
        version: What answers.
        timing: Counts and times it, under the version's name and the key's.
        wants_usage: Whether the client asked for the counts of tokens at the end of a stream.

    Attributes:
        completion_tokens: Of all answers, once they are known.
    """

    def __init__(self, version: Version, timing: Timing, *, wants_usage: bool) -> None:
        self._version = version
        self._timing = timing
        self._wants_usage = wants_usage
        self._ended = False
        self.completion_tokens = 0

    def whole(self, content: dict[str, Any]) -> dict[str, Any]:
        """An answer that came in one piece."""
        self._timing.token()
        self._count(content)
        return self._named(content)

    def error(self, content: object) -> dict[str, Any]:
        """What vLLM says is wrong, in the form of OpenAI's errors, without its names and paths."""
        self.end("refused")
        found = content.get("error", content) if isinstance(content, dict) else content
        error: dict[str, Any] = dict(found) if isinstance(found, dict) else {"message": str(found)[:500]}
        message = str(error.get("message", ""))
        if self._version.manifest is not None:
            message = message.replace(self._version.called, self._version.name)
        return {
            "error": {
                "message": for_clients(message),
                "type": error.get("type", "invalid_request_error"),
                "param": error.get("param"),
                "code": error.get("code"),
            }
        }

    async def events(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """A stream's events, as they come."""
        pending = b""
        async for chunk in chunks:
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                event = self._event(line.rstrip(b"\r"))
                if event is not None:
                    yield event

    def end(self, outcome: str) -> None:
        """Count how it ended, unless an answer of its own has said so."""
        if not self._ended:
            self._finished(outcome)

    def _finished(self, outcome: str) -> None:
        self._ended = True
        self._timing.end(outcome)

    def _event(self, line: bytes) -> bytes | None:
        """One line of a stream as it is passed on; None for one that isn't."""
        if not line.startswith(_DATA):
            return line + b"\n\n" if line.startswith(b":") else None
        if line == _DONE:
            return _DONE + b"\n\n"
        try:
            content = json.loads(line[len(_DATA) :])
        except ValueError:
            return line + b"\n\n"
        if not isinstance(content, dict):
            return line + b"\n\n"
        if "error" in content:
            return _written(self.error(content))
        self._count(content)
        if content.get("choices"):
            self._timing.token()
            if not self._wants_usage:
                content.pop("usage", None)
        elif content.get("usage") and not self._wants_usage:
            return None
        return _written(self._named(content))

    def _named(self, content: dict[str, Any]) -> dict[str, Any]:
        if "model" in content:
            content["model"] = self._version.name
        content["system_fingerprint"] = self._version.fingerprint
        return content

    def _count(self, content: dict[str, Any]) -> None:
        usage = content.get("usage")
        if isinstance(usage, dict):
            self.completion_tokens = int(usage.get("completion_tokens") or 0)
            self._timing.count_tokens(int(usage.get("prompt_tokens") or 0), self.completion_tokens)
        for choice in content.get("choices") or ():
            reason = choice.get("finish_reason") if isinstance(choice, dict) else None
            if reason is not None:
                self._finished(str(reason))


def _written(content: dict[str, Any]) -> bytes:
    return _DATA + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
