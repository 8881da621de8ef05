"""Grammars are compiled off the event loop, one at a time, once each; nobody waits for ever."""

import asyncio
import time

import pytest
from tests.server.tool_world import save_chat_base

from manytune.engine.constraints.grammar import lark_grammar, regex_grammar
from manytune.server import grammars as module
from manytune.server.grammars import Grammars
from manytune.server.http_errors import HttpError


@pytest.fixture(scope="module")
def chat_base(tmp_path_factory):
    return save_chat_base(tmp_path_factory.mktemp("grammars") / "base", "smollm2")


@pytest.fixture
def grammars(chat_base):
    found = Grammars(chat_base, (1,))
    yield found
    found.close()


def test_the_same_grammar_is_compiled_once(grammars) -> None:
    async def run() -> None:
        first = await grammars.compile(regex_grammar("a+"), "regex")
        assert await grammars.compile(regex_grammar("a+"), "regex") is first

    asyncio.run(run())


def test_a_bad_grammar_is_refused_with_its_field(grammars) -> None:
    with pytest.raises(HttpError) as caught:
        asyncio.run(grammars.compile(lark_grammar("start: nothing"), "grammar"))
    error = caught.value
    assert (error.status, error.param) == (400, "grammar")
    assert error.message == 'grammar: unknown name: "nothing".'


def slow(seconds: float, own):
    def compile(self, grammar, begun):
        begun.set()
        time.sleep(seconds)
        return own(self, grammar, begun)

    return compile


def test_the_event_loop_goes_on_while_a_grammar_is_compiled(grammars, monkeypatch) -> None:
    monkeypatch.setattr(Grammars, "_compile", slow(0.3, Grammars._compile))

    async def run() -> int:
        task = asyncio.create_task(grammars.compile(regex_grammar("b+"), "regex"))
        turns = 0
        while not task.done():
            await asyncio.sleep(0.01)
            turns += 1
        await task
        return turns

    assert asyncio.run(run()) > 5


def test_what_takes_too_long_is_refused_and_what_waits_behind_it_may_try_again(grammars, monkeypatch) -> None:
    monkeypatch.setattr(Grammars, "_compile", slow(1.0, Grammars._compile))
    monkeypatch.setattr(module, "_SECONDS", 0.2)

    async def run() -> list:
        both = [grammars.compile(regex_grammar(text), "regex") for text in ("c+", "d+")]
        return await asyncio.gather(*both, return_exceptions=True)

    first, second = asyncio.run(run())
    assert (first.status, "too long to compile" in first.message) == (400, True)
    assert (second.status, second.headers) == (429, {"Retry-After": "1"})


def test_too_many_that_wait_are_refused(grammars, monkeypatch) -> None:
    monkeypatch.setattr(Grammars, "_compile", slow(0.1, Grammars._compile))
    monkeypatch.setattr(module, "_MOST_WAITING", 2)

    async def run() -> list:
        wanted = [grammars.compile(regex_grammar(f"e{number}"), "regex") for number in range(5)]
        return await asyncio.gather(*wanted, return_exceptions=True)

    found = asyncio.run(run())
    assert [getattr(one, "status", 200) for one in found] == [200, 200, 429, 429, 429]
