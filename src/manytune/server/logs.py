"""Log lines as JSON, one object a line; how many there are and how long is limited, whatever clients send."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from manytune.terminal import visible_json

#: Whose lines are as long as what was asked and answered: the operator wants them whole.
PROMPTS = "manytune.server.prompts"

_LINES, _LINES_A_SECOND = 1000, 100.0
_ERRORS, _ERRORS_A_SECOND = 100, 10.0
_LONGEST_FIELD, _LONGEST_TEXT = 500, 20_000


class JsonLines(logging.Formatter):
    """A record with its message and its `fields`.

    Args:
        always: Fields of every line.
    """

    def __init__(self, **always: Any) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _cut(record.getMessage(), _LONGEST_TEXT),
            **self._always,
            **_fields_of(record),
        }
        if record.exc_info:
            line["traceback"] = _cut(self.formatException(record.exc_info), _LONGEST_TEXT)
        return visible_json(json.dumps(line, ensure_ascii=False, default=str))


class RateLimit(logging.Filter):
    """Passes so many lines at once, and so many a second in the long run; errors and warnings have limits of their own.

    The next line that passes says how many were left out, as `suppressed`.

    Args:
        clock: The time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._lines = _Allowance(_LINES, _LINES_A_SECOND, clock)
        self._errors = _Allowance(_ERRORS, _ERRORS_A_SECOND, clock)
        self._suppressed = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line passes."""
        allowance = self._errors if record.levelno >= logging.WARNING else self._lines
        if not allowance.take():
            self._suppressed += 1
            return False
        if self._suppressed:
            record.fields = {**getattr(record, "fields", {}), "suppressed": self._suppressed}
            self._suppressed = 0
        return True


class _Allowance:
    def __init__(self, most: int, a_second: float, clock: Callable[[], float]) -> None:
        self._most, self._a_second, self._clock = most, a_second, clock
        self._left, self._filled = float(most), clock()

    def take(self) -> bool:
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._filled) * self._a_second)
        self._filled = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def log_to_stderr(level: int = logging.INFO, **always: Any) -> None:
    """Write the server's, uvicorn's and asyncio's log to stderr as JSON.

    Args:
        level: The least severe level that is written.
        always: Fields of every line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(**always))
    handler.addFilter(RateLimit())
    for name in ("manytune", "uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
    # The middleware logs each request already.
    logging.getLogger("uvicorn.access").disabled = True


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    if record.name == PROMPTS:
        return fields
    return {name: _short(value) for name, value in fields.items()}


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return _cut(value, _LONGEST_FIELD)
    if isinstance(value, list):
        return [_short(one) for one in value[:32]]
    return value


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"
