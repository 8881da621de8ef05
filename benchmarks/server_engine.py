"""What a server costs: the engine without one, in this process, in turn with a server that is asked the same."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from server_systems import Case
from serving import Asked, engine_run

from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.store.base import Base
from manytune.store.resident import read_resident


def engine_speed(base: Base, case: Case, adapters: Path, ask: Callable[[], float], rounds: int) -> float:
    """A server's speed as a share of the engine's.

    Args:
        base: What both run.
        case: What both are asked.
        adapters: The directory of adapters.
        ask: Asks the server, and gives its seconds.
        rounds: How often; the medians are compared.
    """
    engine = Engine(base.model, base.tokenizer, EngineOptions(max_batch=case.requests))
    names = [case.adapter(number) for number in range(case.requests)]
    for name in {name for name in names if name is not None}:
        engine.add_adapter(name, read_resident(adapters / name))
    prompts = case.prompts(base.model.config.vocab_size)
    run = engine_run(engine, [Asked(tuple(prompt), case.tokens) for prompt in prompts], names)
    run()  # what is made at the first request
    own, served = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        own.append(time.perf_counter() - began)
        served.append(ask())
    return statistics.median(own) / statistics.median(served)
