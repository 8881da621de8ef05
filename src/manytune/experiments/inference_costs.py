"""What answering costs, measured by the engine on the test prompts: the base, and each adapter merged and unmerged.

All systems are measured one after another on the same prompts, each answer with the same number of tokens whatever the
model would say, so that the figures can be compared: a system whose answers are short isn't a fast one. What was
measured is kept with the experiment, and measured again only if the prompts or the trainings are others.
"""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter
from transformers import PreTrainedModel

from manytune.engine.engine import Engine
from manytune.engine.kv_cache import row_width
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.engine.support import unsupported_reason
from manytune.errors import DataError, ManytuneError
from manytune.evaluation.inference_cost import Form, InferenceCost
from manytune.evaluation.versioned import read_versioned, write_versioned
from manytune.experiments.trials import forget_peak_memory
from manytune.methods.registry import terms_of
from manytune.methods.tuners.terms import Terms, TermsError
from manytune.store.attaching import attached
from manytune.store.base import Base
from manytune.store.resident import ResidentAdapter, read_resident
from manytune.training.loop.train import peak_memory

FORMAT = 1

_TOKENS = 32  # of an answer
_BATCH = 16  # prompts
_ALONE = 5  # prompts that are timed to their first token
_ROUNDS = 2  # of which the faster counts: what slows a machine is rarely what is measured

Prompts = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Measured:
    """What was measured, as JSON.

    Attributes:
        key: Of the prompts and the trainings.
        costs: The measurements.
        format: Version of this record.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    key: str
    costs: tuple[InferenceCost, ...]
    format: int = FORMAT


_MEASURED = TypeAdapter(Measured)


def inference_costs(
    base: Base,
    prompts: Mapping[str, Prompts],
    adapters: Mapping[str, Path],
    *,
    max_new_tokens: int,
    kept: Path,
    say: Callable[[str], None],
) -> tuple[InferenceCost, ...]:
    """Measure every system, or read what was measured.

    Args:
        base: With nothing attached.
        prompts: Those of the base under its own name, and of each system that is the base with other prompts.
        adapters: Each trained system's adapter; all answer the base's prompts.
        max_new_tokens: The longest answer of the experiment; at most 32 tokens of it are generated.
        kept: The file of what was measured.
        say: Receives a line about each stage.

    Returns:
        The measurements; empty if the engine can't run the base.
    """
    if unsupported_reason(base.model) is not None:
        return ()
    key = _key(prompts, adapters, max_new_tokens)
    if kept.is_file() and (found := _read(kept)) is not None and found.key == key:
        return found.costs
    say("measuring what answering costs")
    costs = tuple(_all(base, prompts, adapters, min(_TOKENS, max_new_tokens), say))
    write_versioned(Measured(key, costs), kept, _MEASURED)
    return costs


def _all(
    base: Base,
    prompts: Mapping[str, Prompts],
    adapters: Mapping[str, Path],
    tokens: int,
    say: Callable[[str], None],
) -> Iterator[InferenceCost]:
    own = next(iter(prompts.values()))
    for name, asked in prompts.items():
        yield _measure(name, "base", base.model, base.tokenizer, asked, tokens, {})
    mixable: dict[str, _Mixable] = {}
    for name, directory in adapters.items():
        resident = read_resident(directory)
        try:
            mixable[name] = _Mixable(resident, terms_of(resident, base.model))
        except TermsError as error:
            say(f"{name} answers in no mixed batch, so this isn't measured: {error}")
        else:
            one = {name: mixable[name]}
            yield _measure(name, "unmerged", base.model, base.tokenizer, own, tokens, one)
        with attached(base, directory) as model:
            try:
                model.merge_adapter()
            except (
                ManytuneError
            ) as error:  # a method that isn't merged, or a base that nothing is merged into
                say(f"{name} isn't measured merged: {error}")
                continue
            try:
                yield _measure(name, "merged", model.get_base_model(), base.tokenizer, own, tokens, {})
            finally:
                model.unmerge_adapter()
    if len(mixable) > 1:
        yield _measure(", ".join(mixable), "mixed", base.model, base.tokenizer, own, tokens, mixable)


@dataclass(frozen=True)
class _Mixable:
    resident: ResidentAdapter
    terms: Terms


def _measure(
    name: str,
    form: Form,
    model: PreTrainedModel,
    tokenizer: Any,
    prompts: Prompts,
    tokens: int,
    adapters: Mapping[str, _Mixable],
) -> InferenceCost:
    batch = [prompts[place % len(prompts)] for place in range(_BATCH)]
    names: list[str | None] = [*adapters] or [None]
    gc.collect()
    forget_peak_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    options = EngineOptions(
        kv_budget_tokens=_BATCH * row_width(max(map(len, batch)) + tokens),
        max_batch=_BATCH,
        weights="plain",
        speculation="off",  # the cost of a token, not of what these answers repeat
    )
    engine = Engine(model, tokenizer, options)
    for adapter, one in adapters.items():
        engine.add_adapter(adapter, one.resident, terms=one.terms)
    params = SamplingParams(tokens, ignore_eos=True)
    alone = [
        _seconds_to_first(engine, Request(f"alone {place}", prompts[place % len(prompts)], params, names[0]))
        for place in range(_ALONE + 1)
    ][1:]  # the first one warms up
    seconds = []
    for turn in range(_ROUNDS):
        started = time.perf_counter()
        for place, prompt in enumerate(batch):
            request = Request(f"{turn} {place}", prompt, params, names[place % len(names)])
            engine.submit(request, stream=False)
        while engine.busy:
            engine.step()
        seconds.append(time.perf_counter() - started)
    return InferenceCost(name, form, _BATCH * tokens / min(seconds), median(alone), peak_memory())


def _seconds_to_first(engine: Engine, request: Request) -> float:
    started = time.perf_counter()
    engine.submit(request, stream=False)
    while not any(output.token_id is not None for output in engine.step()):
        pass
    found = time.perf_counter() - started
    engine.cancel(request.id)
    return found


def _key(prompts: Mapping[str, Prompts], adapters: Mapping[str, Path], max_new_tokens: int) -> str:
    asked = [(name, [tuple(one) for one in of_system]) for name, of_system in prompts.items()]
    trained = [(name, str(directory)) for name, directory in adapters.items()]
    return hashlib.sha256(repr((asked, trained, max_new_tokens)).encode()).hexdigest()


def _read(path: Path) -> Measured | None:
    """What is kept; None if it can't be read, since it can be measured again."""
    try:
        return read_versioned(
            path, _MEASURED, version=FORMAT, what="measured costs", remedy="remove the file"
        )
    except DataError:
        return None
