"""A training's memory and time in closed form, and what must not get less when something grows."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planner.configs import llama
from tests.random_cases import cases

from manytune.errors import RecipeError
from manytune.planner.hardware import GIB
from manytune.planner.plan import Plan, make_plan
from manytune.planner.recipe import plan_from
from manytune.planner.training import TrainingEstimate

HARDWARE = {"memory_gib": 80, "bandwidth_gb_s": 1e9, "tflops": {"bfloat16": 1, "float32": 0.5}}
# Llama's matrices of `llama()`: W of a layer, V h, norms.
LAYER = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128
HEAD = 1000 * 64
ALL = 4 * (LAYER + 2 * 64) + 2 * HEAD + 64


def plan(method: dict[str, Any] | None = None, hardware: Any = None, **training: Any) -> Plan:
    return make_plan(
        plan_from(
            {
                "model": llama(),
                "method": method or {"name": "lora"},
                "hardware": hardware or HARDWARE,
                "training": training,
            }
        )
    )


def training(method: dict[str, Any] | None = None, hardware: Any = None, **keys: Any) -> TrainingEstimate:
    found = plan(method, hardware, **keys).training
    assert found is not None
    return found


def part(found: TrainingEstimate, name: str) -> float:
    return next(one.bytes.expected for one in found.parts if one.name.startswith(name))


def test_weights_adapter_gradients_and_states_follow_from_their_numbers() -> None:
    found = training()
    lora = 4 * 8 * ((64 + 64) + (64 + 32))
    assert part(found, "base") == 2 * ALL
    assert part(found, "adapter") == part(found, "gradients") == 4 * lora
    assert part(found, "optimizer") == 8 * lora


def test_full_fine_tuning_takes_sixteen_bytes_a_weight_and_its_copy() -> None:
    found = training({"name": "full"})
    assert part(found, "weights") + part(found, "gradients") + part(found, "optimizer") == 16 * ALL
    assert part(found, "a copy of the base") == 2 * ALL
    assert "a copy of the base" not in [
        one.name for one in training({"name": "full", "keep_base": False}).parts
    ]


def test_four_bits_are_qloras_4_127_for_the_layers_alone() -> None:
    packed = 4 * LAYER
    assert part(training(weights="nf4"), "base") == pytest.approx(
        packed * 4.127 / 8 + 2 * (ALL - packed), rel=1e-3
    )


def test_logits_are_held_a_chunk_at_a_time() -> None:
    rows = 20_000  # of 16,777 logits a chunk holds
    chunk = (1 << 24) // 1000 * 1000 * 4
    hidden = rows * 64 * 4
    found = next(one for one in training(batch_size=1, tokens=rows).parts if one.name.startswith("logits"))
    assert found.bytes.low == chunk + hidden


def test_checkpointing_keeps_a_layers_input_and_one_layer() -> None:
    every, some = training(tokens=100), training(tokens=100, gradient_checkpointing=True)
    tokens, fragments = 8 * 100, 1.06
    layer = 4 * (2 * 64 + 2 * 64 + 2 * 32 + 3 * 128 + 64 + 2 * 8)
    assert part(every, "activations") == pytest.approx(tokens * 4 * layer * fragments)
    assert part(some, "activations") == pytest.approx(tokens * (4 * 64 * 4 + layer) * fragments)


def test_required_flops_are_4nd_on_a_frozen_base_and_6nd_in_full() -> None:
    tokens = 8 * 10
    pairs = 8 * 10 * 11 / 2
    attention = 12 * 4 * 64 * pairs
    lora = 4 * 8 * ((64 + 64) + (64 + 32))
    frozen = training(tokens=10).required_flops
    assert frozen == 4 * (4 * LAYER + HEAD) * tokens + 6 * lora * tokens + attention
    assert training({"name": "full"}, tokens=10).required_flops == 6 * (4 * LAYER + HEAD) * tokens + attention


def test_the_time_is_flops_over_what_is_reached_of_the_devices() -> None:
    slow = {**HARDWARE, "tflops": {"bfloat16": 1e-3}}
    found = training(hardware=slow, mfu=0.5)
    assert found.step_seconds.expected == pytest.approx(found.required_flops / (1e9 * 0.5), rel=1e-4)
    assert found.seconds.expected == pytest.approx(found.steps * found.step_seconds.expected)


def test_reading_the_weights_bounds_a_small_batch() -> None:
    slow = {**HARDWARE, "bandwidth_gb_s": 1e-4}
    found = training(hardware=slow, batch_size=1, tokens=1)
    assert found.step_seconds.expected >= 2 * 2 * 4 * LAYER / 1e5  # forward and backward, two bytes


def test_steps_and_cost() -> None:
    found = training(
        rows=1000, epochs=2, batch_size=4, accumulation=2, hardware={**HARDWARE, "price_per_hour": 3}
    )
    assert found.steps == 250
    assert found.cost is not None
    assert found.cost.expected == pytest.approx(3 * found.seconds.expected / 3600)
    assert training().cost is None


def test_sharded_weights_are_divided_among_the_devices() -> None:
    whole, shard = training(devices=4), training(devices=4, sharded=True)
    assert part(shard, "base") == part(whole, "base") / 4
    assert part(shard, "activations") == part(whole, "activations")


def test_the_largest_batch_fits_and_one_more_row_does_not() -> None:
    small = {**HARDWARE, "memory_gib": 1.5}
    found = training(hardware=small, tokens=512)
    assert found.largest_batch > 1
    at, above = (
        training(hardware=small, tokens=512, batch_size=found.largest_batch + more) for more in (0, 1)
    )
    assert at.memory.expected <= 1.5 * GIB < above.memory.expected
    assert training(hardware={**HARDWARE, "memory_gib": 0.01}).largest_batch == 0


BATCHES = st.integers(1, 64)
LENGTHS = st.integers(1, 4096)


@settings(max_examples=cases(20), deadline=None)
@given(rows=BATCHES, tokens=LENGTHS, more=st.integers(1, 64))
def test_memory_and_time_grow_with_rows_tokens_and_rank(rows: int, tokens: int, more: int) -> None:
    found = training(batch_size=rows, tokens=tokens)
    for larger in (
        training(batch_size=rows + more, tokens=tokens),
        training(batch_size=rows, tokens=tokens + more),
        training({"name": "lora", "r": 8 + more}, batch_size=rows, tokens=tokens),
    ):
        assert larger.memory.expected >= found.memory.expected
        assert larger.required_flops >= found.required_flops
        assert larger.step_seconds.expected >= found.step_seconds.expected


@settings(max_examples=cases(20), deadline=None)
@given(rows=BATCHES, tokens=LENGTHS)
def test_a_range_holds_what_is_expected(rows: int, tokens: int) -> None:
    found = training(batch_size=rows, tokens=tokens)
    for one in (found.memory, found.step_seconds, found.seconds, found.tokens_per_second):
        assert 0 < one.low <= one.expected <= one.high


@settings(max_examples=cases(20), deadline=None)
@given(rows=BATCHES, tokens=LENGTHS)
def test_checkpointing_trades_time_for_memory(rows: int, tokens: int) -> None:
    usual = training(batch_size=rows, tokens=tokens)
    checkpointed = training(batch_size=rows, tokens=tokens, gradient_checkpointing=True)
    assert checkpointed.memory.expected <= usual.memory.expected
    assert (
        checkpointed.computed_flops
        > usual.computed_flops
        == usual.required_flops
        == checkpointed.required_flops
    )


def test_what_would_save_memory_is_named() -> None:
    assert plan().savings[:2] == ("gradient_checkpointing", "weights: nf4")
    assert "keep_base: false" in plan({"name": "full"}).savings


@pytest.mark.parametrize(
    ("method", "keys", "message"),
    [
        ({"name": "full"}, {"weights": "nf4"}, "full can't train weights in nf4"),
        (
            {"name": "prefix-tuning"},
            {"gradient_checkpointing": True},
            "without the cache that holds a prefix",
        ),
        (None, {"weights": "float8"}, "can be served, not trained on"),
        (None, {"tokens": 10, "target_tokens": 11}, "more of them"),
        (None, {"tokens": 10, "longest_tokens": 9}, "less than the mean"),
        (None, {"batch": 8}, r"training.batch: there is no such key; did you mean 'batch_size'\?"),
        (None, {"mfu": 1.5}, "less than or equal to 1"),
    ],
)
def test_a_training_that_cannot_be_is_refused_in_a_sentence(
    method: dict[str, Any] | None, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        training(method, **keys)
