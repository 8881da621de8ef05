"""Milliseconds of a decoding step in OpenVINO with weights of 4 bits, by the operation in C++ and with a byte a weight.

    python benchmarks/decode_steps.py [--rounds N]

The embedded base, 1 to 32 rows that have read 30 tokens, without an adapter and all with one on q and v (r = 8).
The two forms take turns, some steps each; medians. A step is all that the engine does for a token.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from machine import LoadWatch, processor
from many_adapters import write_adapters

from manytune.data.encoding.encode import Encoder
from manytune.engine.engine import Engine
from manytune.engine.openvino import program
from manytune.engine.openvino.four_bits import four_bits
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.store.base import Base, load_base
from manytune.store.resident import read_resident

ROWS = (1, 2, 4, 8, 32)
STEPS, PROMPT = 8, 30
FORMS: dict[str, Callable[[], Any]] = {"4 bits in C++": four_bits, "a byte a weight": lambda: None}


def engine_of(base: Base, adapter: Path, operations: Callable[[], Any]) -> Engine:
    options = EngineOptions(weights="int4", runtime="openvino", speculation="off")
    with mock.patch.object(program, "four_bits", operations):
        engine = Engine(
            base.model, base.tokenizer, options, end_ids=[Encoder(base.tokenizer, max_length=None).end_id]
        )
    engine.add_adapter("adapter", read_resident(adapter))
    params = SamplingParams(2, ignore_eos=True)
    engine.generate([Request(str(name), (5, 6, 7), params, name) for name in (None, "adapter")])
    if engine.runtime != "openvino":
        raise SystemExit(f"{engine.runtime} runs this base, not OpenVINO")
    return engine


def begin(engine: Engine, rows: int, adapter: str | None, steps: int) -> None:
    params = SamplingParams(steps, ignore_eos=True)
    for row in range(rows):
        prompt = tuple(100 + (37 * place + 11 * row) % 1000 for place in range(PROMPT))
        engine.submit(Request(str(row), prompt, params, adapter))
    begun: set[str] = set()
    while len(begun) < rows:  # prompts are read in several steps
        begun |= {one.request_id for one in engine.step()}


def times(engines: dict[str, Engine], rows: int, adapter: str | None, rounds: int) -> dict[str, list[float]]:
    # Some steps pass while the last prompts are read.
    for engine in engines.values():
        begin(engine, rows, adapter, STEPS * rounds + 40)
    found: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            for _ in range(STEPS):
                start = time.perf_counter()
                engine.step()
                found[name].append(1e3 * (time.perf_counter() - start))
    for engine in engines.values():
        while engine.busy:
            engine.step()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=6, help=f"of {STEPS} steps each")
    options = parser.parse_args()
    if four_bits() is None:
        raise SystemExit("the operation can't be had here, so there is nothing to compare; the log says why")
    base = load_base("embedded")
    engines: dict[str, Engine] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        adapter = next(iter(write_adapters(folder, base, 1, "q,v")))
        for name, operations in FORMS.items():
            engines[name] = engine_of(base, adapter, operations)
    watch = LoadWatch()
    rows_of_table = []
    for rows in ROWS:
        for adapter_name in (None, "adapter"):
            found = times(engines, rows, adapter_name, options.rounds)
            medians = [statistics.median(found[name]) for name in FORMS]
            cells = [f"{rows}, {adapter_name or 'base'}", *(f"{one:.2f}" for one in medians)]
            rows_of_table.append(f"| {' | '.join(cells)} | {medians[0] / medians[1]:.2f} |")
    print(f"{processor()}; {watch.stop()}; {torch.get_num_threads()} threads, {options.rounds} rounds\n")
    print("|", " | ".join(("rows", *(f"{name}, ms" for name in FORMS), "ratio")), "|")
    print("|---" * (2 + len(FORMS)) + "|")
    print("\n".join(rows_of_table))


if __name__ == "__main__":
    main()
