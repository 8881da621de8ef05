"""Outputs of whole answers wait for the end of one; those of streams don't. Nothing is lost or gets out of order."""

import asyncio
from types import SimpleNamespace

import pytest

from manytune.engine.request import Output, Request, SamplingParams, Usage
from manytune.server import loop as loops
from manytune.server.loop import EngineLoop, Submission

TOKENS = 5


class CountingEngine:
    """Each request's answer is 0, 1, ... up to its limit, a token in each step."""

    def __init__(self):
        self.running = {}

    @property
    def busy(self):
        return bool(self.running)

    def counters(self):
        return SimpleNamespace()

    def submit(self, request):
        self.running[request.id] = [0, request.params.max_new_tokens]

    def cancel(self, request_id):
        return self._output(request_id, "cancelled", None) if request_id in self.running else None

    def step(self):
        outputs = []
        for name, (token, most) in list(self.running.items()):
            self.running[name][0] += 1
            outputs.append(self._output(name, "length" if token + 1 == most else None, token))
        return outputs

    def _output(self, name, reason, token):
        count = self.running[name][0]
        if reason is not None:
            del self.running[name]
        return Output(name, token, "", reason, None, Usage(1, 0, count))


@pytest.fixture
def wakes(monkeypatch):
    """How many outputs the event loop got at once."""
    found = []
    deliver = EngineLoop._deliver

    def counted(self, events):
        found.append(len(events))
        deliver(self, events)

    monkeypatch.setattr(EngineLoop, "_deliver", counted)
    return found


def submission(name, tokens=TOKENS):
    return Submission(Request(name, (1,), SamplingParams(max_new_tokens=tokens)))


async def answered(running, stream, *submissions):
    await running.submit(submissions, stream)
    return [(output, stream.time) async for output in stream]


def run(work):
    """Run it with a loop that has begun, and stop that."""

    async def main():
        running = EngineLoop(CountingEngine())
        running.start()
        try:
            return await work(running)
        finally:
            await running.stop(patience=0)

    return asyncio.run(main())


@pytest.mark.parametrize(("is_whole", "expected"), [(True, [TOKENS]), (False, [1] * TOKENS)])
def test_a_whole_answer_comes_at_once_and_a_stream_token_by_token(monkeypatch, wakes, is_whole, expected):
    monkeypatch.setattr(loops, "HELD_SECONDS", 1000)
    found = run(lambda running: answered(running, running.stream(is_whole=is_whole), submission("a")))
    assert [output.token_id for output, _ in found] == list(range(TOKENS))
    assert wakes == expected
    times = [at for _, at in found]  # those of the steps, not that of the delivery
    assert times == sorted(set(times))


def test_outputs_are_held_for_a_while_only(monkeypatch, wakes):
    monkeypatch.setattr(loops, "HELD_SECONDS", 0)
    found = run(lambda running: answered(running, running.stream(is_whole=True), submission("a")))
    assert len(found) == TOKENS and wakes == [1] * TOKENS


def test_the_end_of_one_answer_brings_what_others_have(monkeypatch, wakes):
    monkeypatch.setattr(loops, "HELD_SECONDS", 1000)

    async def work(running):
        stream = running.stream(is_whole=True)
        return await answered(running, stream, submission("a", 2), submission("b", 4))

    found = run(work)
    assert [(one.request_id, one.token_id) for one, _ in found] == [
        ("a", 0),
        ("b", 0),
        ("a", 1),
        ("b", 1),
        ("b", 2),
        ("b", 3),
    ]
    assert wakes == [4, 2]


def test_a_server_that_stops_ends_what_is_held(monkeypatch):
    monkeypatch.setattr(loops, "HELD_SECONDS", 1000)

    async def main():
        running = EngineLoop(CountingEngine())
        running.start()
        stream = running.stream(is_whole=True)
        await running.submit([submission("a", 10**9)], stream)
        while running._held == []:
            await asyncio.sleep(0)
        await running.stop(patience=0)
        tokens = []
        with pytest.raises(Exception, match="the server stopped before the answer was complete"):
            async for output in stream:
                tokens.append(output.token_id)
        return tokens

    tokens = asyncio.run(main())
    assert tokens and tokens == list(range(len(tokens)))


@pytest.fixture
def sizes(monkeypatch):
    """How many outputs each step had."""
    found = []
    step = CountingEngine.step

    def counted(self):
        outputs = step(self)
        found.append(len(outputs))
        return outputs

    monkeypatch.setattr(CountingEngine, "step", counted)
    return found


async def both(running):
    """Two requests, of which the second is announced before the first comes."""

    async def second():
        with running.arriving() as arrival:
            begun.set()
            await asyncio.sleep(0.05)
            await running.submit([submission("b")], running.stream(), arrival)

    begun = asyncio.Event()
    other = asyncio.create_task(second())
    await begun.wait()
    await running.submit([submission("a")], running.stream())
    await other
    while running.open_requests:
        await asyncio.sleep(0.001)


def test_requests_that_arrive_together_begin_in_one_step(monkeypatch, sizes):
    monkeypatch.setattr(loops, "GATHERED_SECONDS", 1000)
    run(both)
    assert sizes == [2] * TOKENS


def test_an_idle_engine_waits_no_longer_than_its_limit(monkeypatch, sizes):
    monkeypatch.setattr(loops, "GATHERED_SECONDS", 0)
    run(both)
    assert sizes[0] == 1 and sum(sizes) == 2 * TOKENS


def test_a_request_that_comes_alone_begins_at_once(monkeypatch, sizes):
    monkeypatch.setattr(loops, "GATHERED_SECONDS", 1000)

    async def work(running):
        stream = running.stream()
        with running.arriving() as arrival:
            await running.submit([submission("a")], stream, arrival)
        return [output async for output in stream]

    assert len(run(work)) == TOKENS and sizes == [1] * TOKENS
