"""An application called without a socket, as actors call theirs."""

import asyncio

import pytest

from manytune.replicas.asgi_call import call
from manytune.replicas.contract import Forwarded, Head

REQUEST = Forwarded("POST", "/v1/a%20b?c=d", (("x-one", "1"),), b"body")


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def test_the_application_gets_the_request_and_its_answer_comes_part_by_part():
    async def app(scope, receive, send):
        message = await receive()
        assert (scope["method"], scope["path"], scope["query_string"]) == ("POST", "/v1/a b", b"c=d")
        assert scope["headers"] == [(b"x-one", b"1"), (b"content-length", b"4")]
        headers = [(b"content-type", b"text/plain"), (b"Transfer-Encoding", b"chunked")]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": message["body"], "more_body": True})
        await send({"type": "http.response.body", "body": b"!"})

    async def parts():
        return [part async for part in call(app, REQUEST, "7")]

    assert run(parts()) == [Head("7", 201, ((b"content-type", b"text/plain"),)), b"body", b"!"]


def test_closing_the_answer_is_hanging_up():
    seen = []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await send({"type": "http.response.body", "body": b"1", "more_body": True})
            await asyncio.Event().wait()
        finally:
            seen.append((await receive())["type"])

    async def hang_up():
        parts = call(app, REQUEST, "7")
        assert [await anext(parts), await anext(parts)][1] == b"1"
        await parts.aclose()

    run(hang_up())
    assert seen == ["http.disconnect"]


def test_what_the_application_raises_is_raised():
    async def app(scope, receive, send):
        raise ZeroDivisionError

    async def parts():
        return [part async for part in call(app, REQUEST, "7")]

    with pytest.raises(ZeroDivisionError):
        run(parts())
