"""A client of an OpenAI-compatible server: retries, what is refused, and answers that are never asked for twice."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from manytune.data.conversation.conversation import ToolCall
from manytune.data.templates import Example, Segment
from manytune.errors import DataError, RequestError
from manytune.evaluation.answer_files import read_answers
from manytune.evaluation.metrics import METRICS
from manytune.experiments.answer_journal import AnswerJournal
from manytune.experiments.endpoint import Endpoint

ROWS = [
    Example((Segment("user", f"say {word}"),), word, "rows.jsonl", n) for n, word in enumerate("abc", start=1)
]


def said(text: str, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, **more}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}


@contextmanager
def server(*replies: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An address that gives these replies in turn (JSON, a status, bytes) and then echoes prompts; and what came."""
    waiting, asked = list(replies), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append({**body, "path": self.path, "key": self.headers["authorization"]})
            reply = waiting.pop(0) if waiting else said(body["messages"][-1]["content"].split()[-1])
            status = reply if isinstance(reply, int) else 200
            content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(status)
            if status == 429:
                self.send_header("retry-after", "7")
            if status == 302:
                self.send_header("location", "http://127.0.0.1:9/stolen")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}", asked
    finally:
        running.shutdown()
        running.server_close()


def ask(url: str, path: Path, slept: list[float] | None = None, **options: Any) -> list[str]:
    endpoint = Endpoint(**{"url": url, "model": "m", "concurrency": 1, **options})
    found = endpoint.ask(ROWS, AnswerJournal(path), sleep=(slept if slept is not None else []).append)
    return [answer.text for answer in found]


def test_every_row_is_asked_once_greedily_and_the_key_is_sent(tmp_path: Path) -> None:
    with server() as (url, asked):
        assert ask(url, tmp_path / "a.jsonl", key="secret", max_tokens=9) == ["a", "b", "c"]
    assert asked[0] == {
        "model": "m", "max_tokens": 9, "temperature": 0, "messages": [{"role": "user", "content": "say a"}],
        "path": "/v1/chat/completions", "key": "Bearer secret",
    }  # fmt: skip
    assert "secret" not in (tmp_path / "a.jsonl").read_text()


def test_answers_that_are_recorded_are_not_asked_for_again_and_a_cut_line_is(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    with server() as (url, asked):
        ask(url, file)
        whole = file.read_bytes()
        file.write_bytes(whole[:-20])  # killed while it wrote
        assert ask(url, file) == ["a", "b", "c"]
        assert len(asked) == 4 and file.read_bytes() == whole
        ask(url, file, max_tokens=5)  # another question
        assert len(asked) == 7
    assert [one.answer.text for one in read_answers(file, field="answer")][:3] == ["a", "b", "c"]


def test_a_busy_server_is_asked_again_after_as_long_as_it_says(tmp_path: Path) -> None:
    slept: list[float] = []
    with server(503, 429, 500) as (url, _):
        assert ask(url, tmp_path / "a.jsonl", slept, pause=1.0) == ["a", "b", "c"]
    assert slept == [1.0, 7.0, 4.0]


def test_what_came_before_a_failure_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    with server(said("a"), 503, 503) as (url, asked):
        with pytest.raises(
            RequestError,
            match=r"rows.jsonl:2: .*status 503, 2 times. Check the address .* runs. 1 of 3 answers are recorded in",
        ):
            ask(url, file, retries=1)
        assert ask(url, file) == ["a", "b", "c"]
        assert len(asked) == 5


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (404, "status 404: 404"),
        (302, "status 302"),
        (b"<html>", "expected JSON, found b'<html>'; is it an OpenAI-compatible server"),
        ({"choices": []}, "expected an answer of OpenAI's API"),
        ({"choices": [{"message": {"content": 5}}]}, "expected an answer of OpenAI's API"),
    ],
)
def test_what_is_no_answer_is_refused_at_once(tmp_path: Path, reply: Any, message: str) -> None:
    with server(reply) as (url, asked):
        with pytest.raises(RequestError, match=message):
            ask(url, tmp_path / "a.jsonl", key="secret")
        assert len(asked) == 1


def test_an_address_without_a_server_is_tried_again_and_named(tmp_path: Path) -> None:
    slept: list[float] = []
    with pytest.raises(RequestError, match="can't be reached"):
        ask("http://127.0.0.1:9", tmp_path / "a.jsonl", slept, retries=2)
    assert slept == [1.0, 2.0]
    with pytest.raises(RequestError, match="expected an address such as"):
        ask("ftp://somewhere", tmp_path / "a.jsonl")


def test_completions_get_the_text_alone_and_paths_stay(tmp_path: Path) -> None:
    text = {"choices": [{"text": "x", "finish_reason": "length"}]}
    with server(text, text, text) as (url, asked):
        assert ask(f"{url}/api/v1/", tmp_path / "a.jsonl", api="completions") == ["x"] * 3
    assert asked[0]["prompt"] == "say a" and asked[0]["path"] == "/api/v1/completions"
    assert json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])["finished"] == "length"


def test_calls_of_tools_are_scored_as_a_local_answers(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    with server(*[{"choices": [{"message": {"content": None, "tool_calls": [call]}}]}] * 3) as (url, _):
        (text, *_) = ask(url, tmp_path / "a.jsonl")
    from manytune.data.conversation.tools_as_text import call_as_text
    from manytune.evaluation.results import Answer

    right = call_as_text(ToolCall("f", '{"x": 1.0}'))
    assert METRICS["tool_calls"].statistics([Answer(text, 1, "stop")], [[right]])[0, 0] == 1.0


def test_a_file_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"thesis": 1}\n')
    with pytest.raises(
        DataError, match=r"a\.jsonl:1: isn't a recorded answer; give another file with --record"
    ):
        AnswerJournal(tmp_path / "a.jsonl")
