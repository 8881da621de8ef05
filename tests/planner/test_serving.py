"""A service's memory, batch and replicas in closed form, and what must not get less when something grows."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planner.configs import llama
from tests.random_cases import cases

from manytune.planner.architecture import architecture_of
from manytune.planner.hardware import GIB
from manytune.planner.plan import make_plan
from manytune.planner.popularity import distinct_in, zipf_shares
from manytune.planner.recipe import plan_from
from manytune.planner.serving import NoRoom, ServingEstimate

MODEL = architecture_of(llama(), where="model")
LORA = 4 * 8 * ((64 + 64) + (64 + 32))
HARDWARE = {"memory_gib": 3, "bandwidth_gb_s": 100, "tflops": {"bfloat16": 1, "float8": 2}}


def served(method: dict[str, Any] | None = None, hardware: Any = None, **keys: Any) -> ServingEstimate:
    found = make_plan(
        plan_from(
            {
                "model": llama(),
                "method": method or {"name": "lora"},
                "hardware": hardware or HARDWARE,
                "serving": keys,
            }
        )
    ).serving
    assert isinstance(found, ServingEstimate)
    return found


def test_keys_values_and_adapters_follow_from_their_numbers() -> None:
    found = served(adapters=50)
    assert found.kv_bytes == 2 * 4 * 2 * 16 * 2
    assert found.adapter_bytes == found.slot_bytes == 2 * LORA
    assert found.adapters_bytes == 50 * 2 * LORA


def test_a_batch_is_what_fits_next_to_the_weights() -> None:
    found = served(adapters=0, prompt_tokens=3000, answer_tokens=2000, max_batch=10_000)
    free = 3 * GIB * 0.9 - 1.5 * GIB - 2 * MODEL.parameters
    assert found.batch.low == free // (5000 * found.kv_bytes)
    assert found.batch.high == free // (4000 * found.kv_bytes)
    assert served(adapters=0, max_batch=7).batch.expected == 7


def test_a_decoding_step_reads_the_weights_and_the_keys_and_values() -> None:
    fast = {**HARDWARE, "tflops": {"bfloat16": 1e6}}
    found = served(hardware=fast, adapters=0, prompt_tokens=100, answer_tokens=100, max_batch=4)
    read = 2 * (MODEL.layer_weights + MODEL.head_weights) + 4 * 150 * found.kv_bytes
    assert found.step_seconds.expected == pytest.approx(read / (100e9 * 0.7), rel=1e-3)
    assert found.tokens_per_second.expected == pytest.approx(4 / found.step_seconds.expected)


def test_reading_prompts_computes_two_flops_a_weight() -> None:
    found = served(adapters=0, prompt_tokens=1000, answer_tokens=1)
    attention = 4 * MODEL.attention_width * 1000 * 1001 / 2
    flops = 2 * MODEL.layer_weights * 1000 + 2 * MODEL.head_weights + attention
    assert found.first_token_seconds.expected == pytest.approx(flops / (1e12 * 0.5))


def test_replicas_serve_the_traffic_at_their_load() -> None:
    found = served(adapters=0, requests_per_second=1e5, load=0.5)
    needed = 1e5 / (found.requests_per_second.expected * 0.5)
    assert needed <= found.replicas.expected < needed + 1
    assert found.replicas.low <= found.replicas.expected <= found.replicas.high


def test_costs_are_those_of_all_devices() -> None:
    found = served(hardware={**HARDWARE, "price_per_hour": 2}, adapters=0, requests_per_second=1000)
    assert found.cost_per_hour is not None and found.cost_per_million is not None
    assert found.cost_per_hour.expected == 2 * found.all_devices.expected
    answered = 1000 * 128 * 3600 / 1e6
    assert found.cost_per_million.expected == pytest.approx(found.cost_per_hour.expected / answered)


def test_slots_hold_the_adapters_of_a_batch_and_a_quarter_more() -> None:
    found = served(adapters=1000, zipf=1, max_batch=64)
    expected = distinct_in(zipf_shares(1000, 1), found.batch.expected)
    assert expected <= found.slots <= 1.25 * expected + 1
    assert 0 < found.slot_hit_rate < 1


def test_main_memory_holds_as_many_adapters_as_it_is_large_enough_for() -> None:
    half = 500 * 2 * LORA / GIB
    found = served(adapters=1000, host_memory_gib=half)
    assert found.in_memory == 500 and found.memory_hit_rate < 1
    assert served(adapters=1000).in_memory == 1000


def test_a_cpu_keeps_its_linear_layers_twice() -> None:
    cpu = {**HARDWARE, "kind": "cpu"}
    plain = served(hardware=cpu, adapters=0, reordered=False).weight_bytes
    assert plain == 2 * MODEL.parameters
    assert served(hardware=cpu, adapters=0).weight_bytes == plain + 2 * (
        MODEL.layer_weights + MODEL.head_weights
    )


def test_a_model_that_is_too_large_for_one_device_is_shared_by_several() -> None:
    half = {**HARDWARE, "memory_gib": 1.68}
    found = served(hardware=half, adapters=0, prompt_tokens=8000, answer_tokens=60_000)
    assert found.devices > 1
    small = {**HARDWARE, "memory_gib": 0.5}
    nothing = make_plan(plan_from({"model": llama(), "hardware": small, "serving": {}})).serving
    assert isinstance(nothing, NoRoom) and "8 devices of 0.5 GiB hold too little" in nothing.why


def test_prefixes_take_room_in_the_cache_before_each_request() -> None:
    keys = {"prompt_tokens": 3000, "answer_tokens": 2000, "max_batch": 10_000}
    lora, prefix = served(**keys), served({"name": "prefix-tuning", "num_virtual_tokens": 1000}, **keys)
    assert prefix.batch.expected < lora.batch.expected


@settings(max_examples=cases(20), deadline=None)
@given(prompt=st.integers(1, 4000), answer=st.integers(1, 1000), adapters=st.integers(0, 300))
def test_more_of_anything_needs_no_fewer_replicas(prompt: int, answer: int, adapters: int) -> None:
    keys = {"prompt_tokens": prompt, "answer_tokens": answer, "adapters": adapters, "devices": 1}
    found = served(requests_per_second=1000, **keys)
    for one in (found.batch, found.tokens_per_second, found.step_seconds, found.replicas, found.memory):
        assert 0 < one.low <= one.expected <= one.high
    for larger in (
        served(requests_per_second=2000, **keys),
        served(requests_per_second=1000, **{**keys, "prompt_tokens": 2 * prompt}),
        served(requests_per_second=1000, **{**keys, "answer_tokens": 2 * answer}),
    ):
        assert larger.replicas.expected >= found.replicas.expected
