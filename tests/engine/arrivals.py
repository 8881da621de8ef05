"""Requests that come and go while an engine runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manytune.engine.engine import Engine
from manytune.engine.request import Request


@dataclass(frozen=True)
class Arrival:
    """A request, and the step at which it comes."""

    request: Request
    step: int


def run(engine: Engine, arrivals: Sequence[Arrival], cancelled: Mapping[str, int]) -> dict[str, list[Any]]:
    """Every request's outputs; the engine's bookkeeping is checked at each step.

    Args:
        engine: The engine.
        arrivals: The requests.
        cancelled: By a request's id, the step at which it is cancelled.
    """
    outputs: dict[str, list[Any]] = {arrival.request.id: [] for arrival in arrivals}
    last = max([*(arrival.step for arrival in arrivals), *cancelled.values()])
    step = 0
    while engine.busy or step <= last:
        for arrival in arrivals:
            if arrival.step == step:
                engine.submit(arrival.request)
        for name, at in cancelled.items():
            if at == step and (output := engine.cancel(name)) is not None:
                outputs[name].append(output)
        for output in engine.step():
            outputs[output.request_id].append(output)
        engine.check_integrity()
        step += 1
    return outputs


def check(
    outputs: Mapping[str, list[Any]],
    cancelled: Mapping[str, int],
    expected: Callable[[str], Sequence[int]],
    whole: Callable[[str, list[Any]], None],
) -> None:
    """What a cancelled request got is the beginning of its answer; every other one got all of it.

    Args:
        outputs: By request.
        cancelled: By a request's id, the step at which it was cancelled.
        expected: A request's tokens.
        whole: Checks all of a request's outputs.
    """
    for name, got in outputs.items():
        if got and got[-1].finish_reason == "cancelled":
            tokens = [output.token_id for output in got[:-1]]
            assert tokens == list(expected(name)[: len(tokens)])
        elif name not in cancelled or got:
            whole(name, got)
