"""With OpenVINO as the runtime a row of any mixture is what transformers generates with its one adapter attached."""

import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine.adapters import InMemory, attached, in_memory, llama, of_all_tokens
from tests.engine.arrivals import Arrival
from tests.engine.arrivals import run as run_arrivals
from tests.engine.drafting import drafts_always
from tests.engine.mixtures import BUILDERS, LIMIT, PROMPTS, check, params, run, world_of
from tests.random_cases import cases
from transformers import Gemma2Config, Gemma2ForCausalLM

from manytune.engine.bfloat16 import multiplies_bfloat16
from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.errors import ConfigError, RequestError
from manytune.methods.ia3.model import IA3Config
from manytune.methods.lora.config import LoraConfig

pytest.importorskip("openvino", reason="OpenVINO isn't installed; the extra `openvino` brings it")

from manytune.engine.openvino import runner


@pytest.fixture(scope="module", params=list(BUILDERS))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def world(family):
    return world_of(family)


@pytest.fixture(scope="module")
def engine(world, tokenizer):
    """One for many tests: it is idle between them."""
    engine = world.engine(tokenizer, runtime="openvino", prefill_chunk=16, prefix_cache_tokens=64)
    assert engine.runtime == "openvino"
    return engine


@pytest.fixture(params=["operation", "products"])
def either(request, engine, world, tokenizer, monkeypatch):
    """An engine, and one of a machine without a compiler."""
    if request.param == "operation":
        return engine
    monkeypatch.setattr(runner, "operation", lambda: None)
    return world.engine(tokenizer, runtime="openvino", prefill_chunk=16, prefix_cache_tokens=64)


def test_every_adapter_in_one_batch_answers_as_alone(world, either, family, caplog):
    asked = [(name, number) for number in range(len(PROMPTS)) for name in (None, *world.adapters)]
    requests = [Request(f"{name}/{number}", PROMPTS[number], params(), name) for name, number in asked]
    with caplog.at_level(logging.WARNING):
        outputs = run(either, requests)
    for name, number in asked:
        check(world, name, number, outputs[f"{name}/{number}"])
    in_torch = [record.getMessage() for record in caplog.records if "run in torch" in record.getMessage()]
    expected = {"llama": "lm_head is trained in full", "gpt2": "transformer.wpe is a table"}[family]
    assert in_torch and all(message.endswith(expected) for message in in_torch)


@settings(max_examples=cases(6), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_arrivals_and_cancellations_change_no_answer(world, either, data):
    systems = st.sampled_from([None, *world.adapters])
    places = st.integers(0, len(PROMPTS) - 1)
    drawn = st.tuples(systems, places, st.integers(1, LIMIT), st.integers(0, 12))
    arrivals = data.draw(st.lists(drawn, min_size=1, max_size=14))
    names = st.sampled_from([str(place) for place in range(len(arrivals))])
    cancelled = data.draw(st.dictionaries(names, st.integers(0, 20), max_size=4))
    outputs = run_arrivals(
        either,
        [
            Arrival(Request(str(place), PROMPTS[number], params(limit), name), at)
            for place, (name, number, limit, at) in enumerate(arrivals)
        ],
        cancelled,
    )
    for place, (name, number, limit, _) in enumerate(arrivals):
        if str(place) not in cancelled:
            check(world, name, number, outputs[str(place)], limit)


def test_a_cached_prefix_gives_the_same_answer(engine, world):
    prompt = tuple(range(2, 22))
    requests = [Request(name, prompt, params()) for name in ("first", "again")]
    first, again = (engine.generate([request])[0] for request in requests)
    assert (first.usage.cached_tokens, again.usage.cached_tokens) == (0, 16)
    assert again.token_ids == first.token_ids


def test_drafted_answers_are_those_of_transformers(engine, world, monkeypatch):
    drafts_always(engine, monkeypatch)
    asked = [(name, number) for name in (None, *world.adapters) for number in (2, 4)]
    for first in range(0, len(asked), 4):
        some = asked[first : first + 4]
        requests = [Request(f"{name}/{number}", PROMPTS[number], params(), name) for name, number in some]
        outputs = run(engine, requests)
        for name, number in some:
            check(world, name, number, outputs[f"{name}/{number}"])
    assert engine.counters().accepted_tokens > LIMIT


def test_prompts_are_scored_as_in_torch(engine, world, tokenizer):
    asked = Request("scored", PROMPTS[4], SamplingParams(max_new_tokens=0, prompt_logprobs=0))
    found, expected = (
        [one.logprob for one in each.generate([asked])[0].prompt_logprobs]
        for each in (engine, world.engine(tokenizer))
    )
    assert found == pytest.approx(expected, abs=1e-5)


def test_an_adapter_that_has_diverged_fails_alone(world, engine, family):
    targets = {
        "llama": {"target_modules": ["down_proj"]},
        "gpt2": {"target_modules": ["mlp.c_proj"], "fan_in_fan_out": True},
    }
    adapter = in_memory(
        attached(BUILDERS[family](), LoraConfig(r=2, task_type="CAUSAL_LM", **targets[family]), seed=1)
    )
    tensors = {name: torch.full_like(tensor, torch.inf) for name, tensor in adapter.tensors.items()}
    engine.add_adapter("diverged", InMemory("diverged", adapter.config, tensors))
    asked = [Request("bad", PROMPTS[0], params(), "diverged"), Request("good", PROMPTS[2], params())]
    outputs = run(engine, asked)
    assert outputs["bad"][-1].finish_reason == "failed"
    check(world, None, 2, outputs["good"])


@pytest.mark.parametrize("by", ["operation", "products"])
def test_very_large_weights_run_in_the_graph_where_no_other_token_meets_them(
    tokenizer, caplog, monkeypatch, by
):
    world = world_of("llama")
    adapter = in_memory(
        attached(llama(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"), seed=1)
    )
    factors = {"A": 2.0**40, "B": 2.0**-40}  # of the same product, to the bit
    tensors = {name: one * factors[name.split("lora_")[1][0]] for name, one in adapter.tensors.items()}
    if by == "products":
        monkeypatch.setattr(runner, "operation", lambda: None)
    found = []
    with caplog.at_level(logging.WARNING):
        for runtime, own in (("openvino", tensors), ("torch", adapter.tensors)):
            engine = world.engine(tokenizer, runtime=runtime)
            engine.add_adapter("large", InMemory("large", adapter.config, own))
            outputs = run(
                engine, [Request(name, PROMPTS[2], params(), name) for name in ("large", "lora q,v")]
            )
            found.append([one.token_id for one in outputs["large"]])
            check(world, "lora q,v", 2, outputs["lora q,v"])
    assert found[0] == found[1]
    assert ("very large" in caplog.text) == (by == "products")


@pytest.fixture(scope="module")
def compressed(tokenizer):
    world = world_of("llama")
    return {bits: world.engine(tokenizer, runtime="openvino", weights=f"int{bits}") for bits in (8, 4)}


@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_with_rounded_weights_is_the_same_in_a_mixture(compressed, bits):
    engine, world = compressed[bits], world_of("llama")
    names = [None, *world.adapters]
    requests = [Request(str(name), PROMPTS[2], replace(params(), ignore_eos=True), name) for name in names]
    together = engine.generate(requests)
    for request, found in zip(requests, together, strict=True):
        (alone,) = engine.generate([request])
        assert alone.token_ids == found.token_ids
        for one, other in zip(alone.logprobs, found.logprobs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_adapters_act_on_their_own_layers_where_several_are_one_product(compressed, tokenizer):
    engine, world = compressed[8], world_of("llama")
    names = [None, *world.adapters]
    requests = [Request(str(name), PROMPTS[2], params(1), name) for name in names]
    found, expected = (
        [of_all_tokens(one.logprobs[0].top).exp() for one in each.generate(requests)]
        for each in (engine, world.engine(tokenizer))
    )
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < 0.05
    # The adapters differ by more than the rounding does.
    assert sum(bool((one - expected[0]).abs().max() > 0.1) for one in expected[1:]) > len(names) // 2


def test_an_adapter_that_scales_the_inputs_of_one_layer_of_a_product_runs_in_torch(compressed, caplog):
    engine = compressed[8]
    config = IA3Config(target_modules=["up_proj"], feedforward_modules=["up_proj"], task_type="CAUSAL_LM")
    engine.add_adapter("scaled", in_memory(attached(llama(), config, seed=5)))
    with caplog.at_level(logging.WARNING):
        (found,) = engine.generate([Request("one", PROMPTS[0], params(1), "scaled")])
    assert found.usage.completion_tokens == 1
    assert "scales the inputs of model.layers.0.mlp.up_proj, which is computed together" in caplog.text


def dequantized(weight, bits):
    """A weight as its formula in `compression` rounds it, written out group by group."""
    rows = []
    for row in weight.tolist():
        groups = [row[at : at + 32] for at in range(0, len(row), 32)] if bits == 4 else [row]
        rounded = []
        for group in groups:
            if bits == 4:
                step = (max(group) - min(group)) / 15
                rounded += [min(group) + step * round((value - min(group)) / step) for value in group]
            else:
                step = float(torch.tensor(max(map(abs, group)) / 127, dtype=torch.bfloat16))
                rounded += [step * min(127, max(-127, round(value / step))) for value in group]
        rows.append(rounded)
    return torch.tensor(rows)


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_are_rounded_by_their_formula(bits):
    from manytune.engine.openvino.compression import multiply
    from manytune.engine.openvino.library import core, ops, ov

    weight = torch.randn(7, 64, generator=torch.Generator().manual_seed(2))
    x = ops.parameter(ov.PartialShape([-1, -1, 64]), ov.Type.f32)
    graph = ov.Model([ops.result(multiply(x.output(0), weight, bits))], [x])
    # Activations are left as they are.
    settings = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0, "INFERENCE_PRECISION_HINT": "f32"}
    found = core().compile_model(graph, "CPU", settings)(torch.eye(64)[None].numpy())[0]
    # With 4 bits zero points are rounded to a 17th of a step.
    steps = (weight.unflatten(1, (-1, 32)).amax(2) - weight.unflatten(1, (-1, 32)).amin(2)) / 15
    tolerance = 1e-5 + (float(steps.max()) / 34 if bits == 4 else 0)
    torch.testing.assert_close(
        torch.from_numpy(found)[0].T, dequantized(weight, bits), atol=tolerance, rtol=0
    )


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_activations_to_8_bits_changes_a_product_by_a_hundredth_at_most(bits):
    from manytune.engine.openvino.compression import multiply
    from manytune.engine.openvino.library import core, ops, ov
    from manytune.engine.quantized import GROUP

    draw = torch.Generator().manual_seed(3)
    # All weights of a row are above 0, as far from a zero point in the middle of the codes as can be.
    weight, x = torch.rand(64, 576, generator=draw) + 0.2, torch.randn(1, 16, 576, generator=draw)
    given = ops.parameter(ov.PartialShape([-1, -1, 576]), ov.Type.f32)
    graph = ov.Model([ops.result(multiply(given.output(0), weight, bits))], [given])
    settings = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP, "INFERENCE_PRECISION_HINT": "f32"}
    found = torch.from_numpy(core().compile_model(graph, "CPU", settings)(x.numpy())[0])
    expected = x @ dequantized(weight, bits).T
    assert float((found - expected).norm() / expected.norm()) < 0.01


def runtime_and_words(model, tokenizer, caplog, **options):
    with caplog.at_level(logging.WARNING):
        engine = Engine(model, tokenizer, EngineOptions(runtime="openvino", **options))
    return engine, " ".join(record.getMessage() for record in caplog.records)


def test_torch_runs_what_cant_be_converted_and_says_why(tokenizer, caplog):
    sizes = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    model = Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, pad_token_id=0)).eval()
    engine, words = runtime_and_words(model, tokenizer, caplog)
    assert engine.runtime == "torch"
    assert "torch runs the model, since" in words and "softcap" in words
    assert engine.generate([Request("one", (5, 6), SamplingParams(max_new_tokens=2))])[
        0
    ].usage.completion_tokens


def test_torch_runs_models_of_other_dtypes_and_says_so(tokenizer, caplog):
    engine, words = runtime_and_words(llama().double(), tokenizer, caplog)
    assert engine.runtime == "torch" and "load it in float32, bfloat16 or float16" in words


#: What torch computes for the graph, in the base's own precision: tables, and rows that the graph can't compute.
IN_TORCH = {"lora embeddings", "trained table", "trained head", "lora + tokens", "tokens", "lora positions"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_half_precision_answers_as_its_numbers_do_in_float32(family, dtype, tokenizer):
    world = world_of(family, dtype)
    engine = world.engine(tokenizer, runtime="openvino", prefill_chunk=16)
    assert engine.runtime == "openvino" and world.model.dtype == dtype
    asked = [(name, number) for number in range(len(PROMPTS)) for name in (None, *world.adapters)]
    requests = [Request(f"{name}/{number}", PROMPTS[number], params(), name) for name, number in asked]
    outputs = run(engine, requests)
    for name, number in asked:
        if name not in IN_TORCH:
            check(world, name, number, outputs[f"{name}/{number}"])
        else:
            first = of_all_tokens(outputs[f"{name}/{number}"][0].logprobs.top)
            assert (first - world.expected[name, number][1][0]).abs().max() < 0.1


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_a_base_in_bfloat16_is_rounded_as_the_same_numbers_in_float32(family, weights, tokenizer):
    if weights == "bf16" and not multiplies_bfloat16():
        pytest.skip("this processor multiplies no bfloat16")
    half, wide = world_of(family, torch.bfloat16), BUILDERS[family]().bfloat16().float()
    found = []
    for model in (half.model, wide):
        engine = Engine(model, tokenizer, EngineOptions(runtime="openvino", weights=weights))
        assert engine.runtime == "openvino"
        asked = [Request(str(number), prompt, params()) for number, prompt in enumerate(PROMPTS)]
        found.append(run(engine, asked))
    assert found[0] == found[1]


def test_a_graph_that_computes_something_else_is_noticed(tokenizer, caplog, monkeypatch):
    from manytune.engine.openvino import program

    def wrong(model):
        found = convert(model)
        return replace(found, attentions=tuple(replace(one, scaling=-2.0) for one in found.attentions))

    convert = program.convert
    monkeypatch.setattr(program, "convert", wrong)
    engine, words = runtime_and_words(llama(spread=0.5), tokenizer, caplog)
    assert engine.runtime == "torch" and "differs from torch's result by" in words


def test_torch_runs_the_rows_of_adapters_that_openvino_cant_compile(tokenizer, caplog, monkeypatch):
    from manytune.engine.openvino import program

    def build(converted, outline, **options):
        if outline.updates:
            raise RuntimeError("no kernel for it")
        return built(converted, outline, **options)

    built = program.build
    monkeypatch.setattr(program, "build", build)
    world = world_of("llama")
    engine = world.engine(tokenizer, runtime="openvino")
    with caplog.at_level(logging.WARNING):
        outputs = run(engine, [Request(str(name), PROMPTS[2], params(), name) for name in (None, "lora q,v")])
    assert "the rows of 1 adapters run in torch, not in OpenVINO: no kernel for it" in caplog.text
    check(world, None, 2, outputs["None"])
    check(world, "lora q,v", 2, outputs["lora q,v"])


def test_changed_weights_are_noticed(tokenizer):
    model = llama()
    engine = Engine(model, tokenizer, EngineOptions(runtime="openvino", kv_budget_tokens=128))
    engine.submit(Request("one", PROMPTS[0], params()))
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    with pytest.raises(RequestError, match="the base's weights changed"):
        engine.step()


def test_another_engine_of_a_base_in_half_precision_changes_no_weights(tokenizer):
    model = llama().bfloat16()
    engine, another = (Engine(model, tokenizer, EngineOptions(runtime="openvino")) for _ in range(2))
    asked = [Request("one", PROMPTS[2], params())]
    assert engine.generate(asked)[0].token_ids == another.generate(asked)[0].token_ids


def test_an_unknown_form_or_runtime_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="weights='int2': expected one of"):
        Engine(llama(), tokenizer, EngineOptions(runtime="openvino", weights="int2"))
    with pytest.raises(ConfigError, match="runtime='onnx': expected one of torch, openvino"):
        Engine(llama(), tokenizer, EngineOptions(runtime="onnx"))


def test_what_was_computed_in_float32_can_be_written_to_a_cache_in_bfloat16():
    from manytune.engine.openvino.paged_cache import PagedCache

    cache = PagedCache(layers=1, heads=2, head_dim=4, budget=64, dtype=torch.bfloat16)
    cache.add("one", 40)
    values = torch.randn(1, 2, 2, 35, 4, generator=torch.Generator().manual_seed(6))
    cache.write("one", values)
    assert torch.equal(cache.read("one", 35), values.bfloat16())
