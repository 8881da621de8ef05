"""Answers of a model behind an OpenAI-compatible address: several at once, with retries, each recorded as it comes."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Literal

from manytune.data.conversation.conversation import ToolCall
from manytune.data.conversation.tools_as_text import call_as_text
from manytune.data.templates import Example, Segment
from manytune.errors import RequestError
from manytune.evaluation.results import Answer
from manytune.experiments.answer_journal import AnswerJournal, body_digest
from manytune.experiments.answering import Notice

Api = Literal["chat", "completions"]

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_LONGEST_REPLY = 16 * 2**20
_LONGEST_WAIT = 60.0
_SHOWN = 300  # characters of a server's own words


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One model behind one address.

    Attributes:
        url: As OpenAI's clients take it, such as `http://localhost:8000/v1`; without any path, `/v1` is added.
        model: The model's name there.
        api: `"chat"` sends messages, to which the server applies its chat template; `"completions"` the text alone.
        max_tokens: The longest answer.
        key: Sent as a bearer token; None for none.
        timeout: Seconds that a reply may take.
        retries: How often a request is sent again, if the server is busy or can't be reached.
        concurrency: How many requests are sent at once.
        pause: Seconds before the first retry; twice as many before each further one.
    """

    url: str
    model: str
    api: Api = "chat"
    max_tokens: int = 128
    key: str | None = None
    timeout: float = 120.0
    retries: int = 5
    concurrency: int = 8
    pause: float = 1.0

    @property
    def address(self) -> str:
        """Where requests go.

        Raises:
            RequestError: The URL isn't one of http or https.
        """
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            raise RequestError(
                f"expected an address such as http://localhost:8000/v1, found {self.url!r}; give that of an "
                "OpenAI-compatible server, without a query"
            )
        base = self.url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
        return f"{base}/{'chat/completions' if self.api == 'chat' else 'completions'}"

    def body(self, example: Example) -> dict[str, Any]:
        """What is sent for a row: its messages and tools, or its text. Greedy: `temperature` is 0."""
        asked: dict[str, Any] = {"model": self.model, "max_tokens": self.max_tokens, "temperature": 0}
        if self.api == "completions":
            return {**asked, "prompt": "\n\n".join(segment.text for segment in example.segments)}
        tools = {"tools": list(example.tools)} if example.tools else {}
        return {**asked, "messages": [_message(segment) for segment in example.segments], **tools}

    def ask(
        self,
        rows: Sequence[Example],
        journal: AnswerJournal,
        *,
        notice: Notice | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> tuple[Answer, ...]:
        """Ask every row that the journal has no answer to.

        Args:
            rows: What is asked, a row a prompt.
            journal: Where answers are recorded as they come, and found again.
            notice: Called after each answer.
            sleep: Waits before a retry.

        Raises:
            RequestError: The server refused a request, or couldn't be reached however often it was tried; the answers
                that came are in the journal.
        """
        bodies = [self.body(row) for row in rows]
        keys = [body_digest(self.address, body) for body in bodies]
        open_ones = [place for place, key in enumerate(keys) if key not in journal.answers]
        done = len(rows) - len(open_ones)
        executor, over = ThreadPoolExecutor(self.concurrency), threading.Event()
        failure: tuple[Example, RequestError] | None = None
        try:
            asked = {executor.submit(self._answer, bodies[place], sleep, over): place for place in open_ones}
            for future in as_completed(asked):
                place = asked[future]
                try:
                    answer = future.result()
                except RequestError as error:
                    failure = failure or (rows[place], error)
                    continue
                if answer is None:
                    continue
                journal.keep(keys[place], rows[place], self.model, answer)
                done += 1
                if notice is not None:
                    notice("answers", done, len(rows))
        finally:
            over.set()
            executor.shutdown(cancel_futures=True)
        if failure is not None:
            row, reason = failure
            raise RequestError(
                f"{row.where}: {reason} {done:,} of {len(rows):,} answers are recorded in {journal.path}, and the same "
                "command continues from there."
            ) from reason
        return tuple(journal.answers[key] for key in keys)

    def _answer(
        self, body: dict[str, Any], sleep: Callable[[float], None], over: threading.Event
    ) -> Answer | None:
        """One answer, after as many retries as it takes; None if another request failed meanwhile."""
        pause = self.pause
        for tried in range(self.retries + 1):
            if over.is_set():
                return None
            try:
                return _read(self._post(body), self.api)
            except RequestError:
                over.set()
                raise
            except _BusyError as error:
                if tried == self.retries:
                    over.set()
                    raise RequestError(
                        f"{self.address}: {error}{_often(tried + 1)}. Check the address and that the server runs."
                    ) from error
                sleep(min(error.wait if error.wait is not None else pause, _LONGEST_WAIT))
                pause *= 2
        raise AssertionError("the last try returns or raises")

    def _post(self, body: dict[str, Any]) -> Any:
        headers = {"content-type": "application/json", "user-agent": "manytune"}
        if self.key is not None:
            headers["authorization"] = f"Bearer {self.key}"
        # Its address is one of http or https.
        request = urllib.request.Request(  # noqa: S310
            self.address, json.dumps(body).encode(), headers, method="POST"
        )
        try:
            with _OPENER.open(request, timeout=self.timeout) as reply:
                content = reply.read(_LONGEST_REPLY + 1)
        except urllib.error.HTTPError as error:
            said = error.read(_LONGEST_REPLY).decode("utf-8", "replace")[:_SHOWN]
            if error.code in _AGAIN:
                raise _BusyError(f"it answered with status {error.code}", _seconds(error)) from error
            raise RequestError(f"{self.address} answered with status {error.code}: {said}.") from error
        except (OSError, http.client.HTTPException) as error:
            raise _BusyError(f"it can't be reached ({_reason(error)})") from error
        if len(content) > _LONGEST_REPLY:
            raise RequestError(f"{self.address} sent more than {_LONGEST_REPLY:,} bytes.")
        try:
            return json.loads(content)
        except ValueError as error:
            raise RequestError(
                f"{self.address}: expected JSON, found {content[:_SHOWN]!r}; is it an OpenAI-compatible server?"
            ) from error


class _BusyError(Exception):
    """A request may be sent again, after `wait` seconds if the server said how many."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows none: a redirect would take the key to another server."""

    def redirect_request(self, *_: Any) -> None:
        """Make no further request."""
        return


_OPENER = urllib.request.build_opener(_NoRedirect)


def _seconds(error: urllib.error.HTTPError) -> float | None:
    """How long a server wants to be left alone, in seconds."""
    found = error.headers.get("retry-after", "")
    return float(found) if found.isdecimal() else None


def _message(segment: Segment) -> dict[str, Any]:
    """A message as JSON."""
    found: dict[str, Any] = {"role": segment.role, "content": segment.text}
    if segment.name is not None:
        found["name"] = segment.name
    if segment.tool_call_id is not None:
        found["tool_call_id"] = segment.tool_call_id
    if segment.tool_calls:
        found["tool_calls"] = [
            {
                "id": call.id or f"call_{place}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for place, call in enumerate(segment.tool_calls)
        ]
    return found


def _read(reply: Any, api: Api) -> Answer:
    """An answer from a reply; calls of tools as text.

    Raises:
        RequestError: It isn't what the API says.
    """
    try:
        choice = reply["choices"][0]
        if api == "completions":
            text = choice["text"]
        else:
            calls = choice["message"].get("tool_calls") or []
            written = [call_as_text(ToolCall(**_function(call))) for call in calls]
            text = "\n".join(filter(None, [choice["message"].get("content") or "", *written]))
        tokens = (reply.get("usage") or {}).get("completion_tokens") or 0
        finished = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise RequestError(f"expected an answer of OpenAI's API, found {str(reply)[:_SHOWN]}.") from error
    if not isinstance(text, str) or not isinstance(tokens, int):
        raise RequestError(f"expected an answer of OpenAI's API, found {str(reply)[:_SHOWN]}.")
    return Answer(text, tokens, "length" if finished == "length" else "stop")


def _function(call: Any) -> dict[str, str]:
    return {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}


def _reason(error: Exception) -> str:
    """Why an address can't be reached, in the system's words alone."""
    inner = getattr(error, "reason", error)
    return str(getattr(inner, "strerror", None) or inner or type(error).__name__)


def _often(times: int) -> str:
    return f", {times} times" if times > 1 else ""
