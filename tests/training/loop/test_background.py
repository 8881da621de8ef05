"""Batches are built in a thread of their own, in order, and nothing outlives the training loop."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.tiny_run import as_rows, lora, sequences, settings

from manytune.data.encoding.encoded import Encoded
from manytune.errors import DataError
from manytune.training.batches import BUILDERS, Batch, builder
from manytune.training.loop.background import BackgroundBuilder
from manytune.training.loop.train import train_model

shared_prefix = partial(builder("shared-prefix"), pad_id=0)


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("manytune-batches")]


def test_a_batch_is_built_while_the_caller_does_something_else() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def build(rows: Sequence[Encoded]) -> Any:
        begun.set()
        assert may_end.wait(10)
        return shared_prefix(rows)

    with BackgroundBuilder(build) as background:
        pending = background(sequences(2))
        assert begun.wait(10)
        assert not pending.future.done()
        may_end.set()
        assert isinstance(pending.get(), Batch)


def test_batches_come_as_they_were_asked_for_and_know_their_rows_and_targets_at_once() -> None:
    rows = sequences(12)
    with BackgroundBuilder(shared_prefix) as background:
        pending = [background(rows[start : start + 3]) for start in range(0, 12, 3)]
        for start, one in zip(range(0, 12, 3), pending, strict=True):
            expected: Any = shared_prefix(rows[start : start + 3])
            batch: Any = one.to("cpu").get()
            assert torch.equal(batch.input_ids, expected.input_ids)
            assert one.targets == expected.targets
            assert one.rows == tuple(f"rows.jsonl:{row.row}" for row in rows[start : start + 3])


def test_an_error_in_the_thread_reaches_the_loop_and_leaves_nothing_running() -> None:
    broken = [*sequences(5), Encoded((), (3, 0), "rows.jsonl", 6)]
    with pytest.raises(DataError, match=r"rows\.jsonl:6: the prompt has no tokens"):
        train_model(lora(), as_rows(broken), settings())
    assert running() == []


def test_an_exception_in_the_loop_leaves_nothing_running() -> None:
    class StoppedError(Exception):
        pass

    def stop(_: object) -> None:
        assert len(running()) == 1
        raise StoppedError

    with pytest.raises(StoppedError):
        train_model(lora(), as_rows(sequences(9)), settings(), report=stop)
    assert running() == []


@pytest.mark.parametrize("layout", BUILDERS)
def test_building_draws_no_random_number(layout: str) -> None:
    """Else dropout would depend on how far ahead the thread is, and a resumed run on where it was interrupted."""
    before = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
    builder(layout)(sequences(6), pad_id=0)
    assert (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()) == before
