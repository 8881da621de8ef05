"""Engines that draft whatever they guess, since on their clock a step takes as long with drafts as without."""

from manytune.engine import step_times
from manytune.engine.speculation import Speculation


class Clock:
    """The clock by which steps are measured, which a test sets."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(step_times, "perf_counter", lambda: self.now)


def drafts_always(engine, monkeypatch):
    """The engine, with drafts in almost every step that reads no prompts, for up to 32 requests at once."""
    clock = Clock(monkeypatch)

    def tick():
        clock.now += 1
        return clock.now

    monkeypatch.setattr(step_times, "perf_counter", tick)
    monkeypatch.setattr(step_times, "_LEAST", 0.0)
    speculation = Speculation(is_on=True)
    for requests in range(1, 33):
        for drafted in (0, 0, 0, 1, 1, 1):
            speculation.begin_step()
            speculation._times.end(requests, drafted)
    monkeypatch.setattr(engine, "_speculation", speculation)
    return engine
