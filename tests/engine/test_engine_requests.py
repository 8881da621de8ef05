"""Requests and adapters from submission to their end: text, stops, cancelling, replacing, sharing, refusing."""

import dataclasses

import pytest
import torch
from tests.engine.adapters import END, TASK, VOCABULARY, InMemory, attached, in_memory, llama
from tests.methods.tiny_models import BERT
from tests.reference.single_adapter import answer

from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.errors import AdapterError, ConfigError, ContextLengthError, RequestError
from manytune.methods.adalora.config import AdaLoraConfig
from manytune.methods.lora.config import LoraConfig
from manytune.methods.prompt_tuning.model import PromptTuningConfig
from manytune.model.attach import get_peft_model

LAYERS = "base_model.model.model.layers"
PROMPT = (5, 6, 7, 8, 9)
LONG = tuple(2 + place % 40 for place in range(40))


def lora(seed, **options):
    return in_memory(
        attached(
            llama(),
            LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type=TASK, **options),
            seed=seed,
        )
    )


def expected(adapter_seed, prompt=PROMPT, limit=8):
    model = llama()
    if adapter_seed is not None:
        model = attached(
            model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type=TASK), seed=adapter_seed
        )
    return answer(model, prompt, max_new_tokens=limit)[0]


def free(limit=8, **options):
    return SamplingParams(max_new_tokens=limit, ignore_eos=True, **options)


def drain(engine):
    outputs = {}
    while engine.busy:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
        engine.check_integrity()
    return outputs


@pytest.fixture
def engine(tokenizer):
    return Engine(llama(), tokenizer)


def test_the_parts_of_the_text_add_up(engine, tokenizer):
    engine.submit(Request("a", PROMPT, free()))
    outputs = drain(engine)["a"]
    tokens = [output.token_id for output in outputs]
    assert tokens == expected(None)
    assert "".join(output.text for output in outputs) == tokenizer.decode(tokens)
    assert [output.usage.completion_tokens for output in outputs] == list(range(1, 9))


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(engine, tokenizer):
    words = tokenizer.decode(expected(None))
    stop = words[len(words) // 2 : len(words) // 2 + 3]
    (given,) = engine.generate([Request("a", PROMPT, free(stop=("never there", stop)))])
    assert given.finish_reason == "stop" and given.text == words[: words.index(stop)]
    assert not engine.busy


def test_an_end_token_ends_the_answer_unless_it_is_ignored(engine):
    bias = {END: 100.0}
    first, second = engine.generate(
        [
            Request("a", PROMPT, SamplingParams(max_new_tokens=4, logit_bias=bias)),
            Request("b", PROMPT, SamplingParams(max_new_tokens=4, logit_bias=bias, ignore_eos=True)),
        ]
    )
    assert (first.finish_reason, first.token_ids, first.usage.completion_tokens) == ("stop", (), 1)
    assert (second.finish_reason, second.token_ids) == ("length", (END,) * 4)


def test_a_cancelled_request_ends_at_once_and_others_go_on(engine):
    engine.submit(Request("a", PROMPT, free()))
    engine.submit(Request("b", LONG, free()))
    engine.step()
    last = engine.cancel("b")
    assert last.finish_reason == "cancelled" and last.token_id is None
    assert engine.cancel("b") is None
    engine.check_integrity()
    assert "b" not in drain(engine)
    assert engine.counters().cancelled == 1 and engine.counters().finished == 1


def test_a_replaced_adapter_goes_on_serving_its_requests(engine):
    engine.add_adapter("x", lora(1))
    engine.submit(Request("old", PROMPT, free(), "x"))
    engine.step()
    engine.add_adapter("x", lora(2))
    engine.submit(Request("new", PROMPT, free(), "x"))
    outputs = drain(engine)
    assert [o.token_id for o in outputs["old"]][-7:] == expected(1)[-7:]
    assert [o.token_id for o in outputs["new"]] == expected(2)
    assert expected(1) != expected(2)


def test_a_removed_adapter_goes_on_serving_and_takes_no_new_requests(engine):
    engine.add_adapter("x", lora(1))
    engine.submit(Request("waits", PROMPT, free(), "x"))
    assert engine.remove_adapter("x") is True and engine.adapters == ()
    with pytest.raises(AdapterError, match=r"there is no adapter 'x' in the engine\. Loaded: none"):
        engine.submit(Request("late", PROMPT, free(), "x"))
    assert [o.token_id for o in drain(engine)["waits"]] == expected(1)
    assert engine.holds("x") is False and engine.counters().adapters_in_slots == 0


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_adapters_kept_in_half_precision_compute_in_the_bases(engine, options):
    whole = lora(1, **options)
    half = dataclasses.replace(
        whole, digest="half", tensors={name: tensor.bfloat16() for name, tensor in whole.tensors.items()}
    )
    again = dataclasses.replace(
        half, digest="again", tensors={name: tensor.float() for name, tensor in half.tensors.items()}
    )
    params = free(3, logprobs=VOCABULARY)
    engine.add_adapter("half", half)
    engine.add_adapter("again", again)
    one, other = (engine.generate([Request("a", PROMPT, params, name)])[0] for name in ("half", "again"))
    for mine, its in zip(one.logprobs, other.logprobs, strict=True):
        assert dict(mine.top) == pytest.approx(dict(its.top), abs=1e-5)


def test_equal_content_shares_a_slot(engine):
    for name in ("x", "y"):
        engine.add_adapter(name, lora(1))
        engine.submit(Request(name, PROMPT, free(), name))
    engine.step()
    assert engine.counters().adapters_in_slots == 1
    outputs = drain(engine)
    assert outputs["x"][-1].token_id == outputs["y"][-1].token_id == expected(1)[-1]


def test_a_cached_prefix_is_read_once_and_changes_no_answer(tokenizer):
    engine = Engine(llama(), tokenizer, EngineOptions(prefix_cache_tokens=1000))
    engine.add_adapter("x", lora(1))
    asked = [Request("first", LONG, free(), "x"), Request("second", (*LONG[:35], 3, 4), free(), "x")]
    first, second = (engine.generate([one])[0] for one in asked)
    assert first.usage.cached_tokens == 0 and second.usage.cached_tokens == 32
    assert list(first.token_ids) == expected(1, LONG)
    assert list(second.token_ids) == expected(1, (*LONG[:35], 3, 4))
    assert engine.counters().prompt_tokens == len(LONG) + 37 - 32


@pytest.mark.parametrize(
    "change", [{"tenant": "other"}, {"adapter": "y"}, {"adapter": None}], ids=["tenant", "adapter", "base"]
)
def test_another_tenant_or_adapter_gets_nothing_from_the_cache(tokenizer, change):
    engine = Engine(llama(), tokenizer, EngineOptions(prefix_cache_tokens=1000))
    engine.add_adapter("x", lora(1))
    engine.add_adapter("y", lora(2))
    one = Request("one", LONG, free(), "x")
    engine.generate([one])
    (again,) = engine.generate([dataclasses.replace(one, id="again", **change)])
    assert again.usage.cached_tokens == 0


def test_virtual_tokens_are_in_the_cached_prefix(tokenizer):
    config = PromptTuningConfig(num_virtual_tokens=3, task_type=TASK)
    adapter = in_memory(attached(llama(), config, seed=4))
    engine = Engine(llama(), tokenizer, EngineOptions(prefix_cache_tokens=1000, prefill_chunk=7))
    engine.add_adapter("x", adapter)
    first = engine.generate([Request("1", LONG[:37], free(), "x")])[0]
    second = engine.generate([Request("2", LONG[:37], free(), "x")])[0]
    assert second.usage.cached_tokens == 32 and first.token_ids == second.token_ids


def test_a_batch_without_adapters_runs_the_plain_layers(tokenizer, monkeypatch):
    engine = Engine(llama(), tokenizer, EngineOptions(weights="plain"))
    engine.add_adapter("x", lora(1))

    def refuse(*_):
        raise AssertionError("an adapter was called")

    monkeypatch.setattr("manytune.mixed.updates.Product.add", refuse)
    monkeypatch.setattr("manytune.mixed.layers.MixedLayers._forward", refuse)
    assert list(engine.generate([Request("a", PROMPT, free())])[0].token_ids) == expected(None)


@pytest.mark.parametrize("change", ["in place", "swapped"])
def test_a_changed_base_is_noticed(tokenizer, change):
    model = llama()
    engine = Engine(model, tokenizer)
    engine.submit(Request("a", PROMPT, free()))
    engine.step()
    weight = model.model.layers[1].mlp.up_proj.weight
    if change == "in place":
        with torch.no_grad():
            weight.add_(1.0)
    else:
        weight.data = weight.data + 1.0
    with pytest.raises(RequestError, match=r"the base's weights changed .*layers\.1\.mlp\.up_proj"):
        engine.step()


def test_generate_is_refused_while_there_are_other_requests(engine):
    engine.submit(Request("a", PROMPT, free()))
    with pytest.raises(RequestError, match="while the engine has other requests"):
        engine.generate([Request("b", PROMPT, free())])


def test_generate_runs_nothing_if_one_request_cannot_run(engine):
    with pytest.raises(AdapterError):
        engine.generate([Request("a", PROMPT, free()), Request("b", PROMPT, free(), "x")])
    assert not engine.busy and engine.counters().steps == 0


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (Request("a", LONG, free(30)), ContextLengthError, "'a' has 40 tokens and 30 to generate"),
        (Request("a", (1, 48), free()), RequestError, "'a': prompt_ids contains token 48"),
        (Request("taken", PROMPT, free()), RequestError, "a request 'taken' already"),
    ],
)
def test_requests_that_can_never_run_are_refused(tokenizer, request_, error, message):
    engine = Engine(llama(), tokenizer, EngineOptions(kv_budget_tokens=64))
    engine.submit(Request("taken", PROMPT, free()))
    with pytest.raises(error, match=message):
        engine.submit(request_)


def test_a_request_needs_a_prompt():
    with pytest.raises(RequestError, match="'a' has no prompt tokens"):
        Request("a", ())


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (BERT.build, "looks ahead|takes no"),
        (
            lambda: attached(llama(), LoraConfig(target_modules=["q_proj"], task_type=TASK), seed=0),
            "PeftModel",
        ),
    ],
    ids=["bert", "peft model"],
)
def test_models_that_the_engine_cannot_run_are_refused_with_the_reason(tokenizer, build, reason):
    with pytest.raises(ConfigError, match=rf"the engine can't run this model: .*({reason})"):
        Engine(build(), tokenizer)


def test_no_adapter_can_be_added_to_a_model_with_attached_ones(tokenizer):
    carrying = attached(llama(), LoraConfig(target_modules=["q_proj"], task_type=TASK), seed=0)
    engine = Engine(carrying.get_base_model(), tokenizer)
    with pytest.raises(
        ConfigError, match=r"'x' can't run .*: model.layers.0.self_attn.q_proj has adapters attached"
    ):
        engine.add_adapter("x", lora(1))


def with_tensor(adapter, name, tensor):
    return dataclasses.replace(adapter, tensors={**adapter.tensors, name: tensor})


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            lambda: with_tensor(lora(1), "base_model.model.model.norm.weight", torch.zeros(32)),
            r"LORA adapter: its file holds 'model.norm.weight', .* nor of modules_to_save=\[\], nor an embedding table",
        ),
        (
            lambda: with_tensor(lora(1), f"{LAYERS}.7.mlp.up_proj.lora_A.weight", torch.zeros(4, 32)),
            "'model.layers.7.mlp.up_proj', and LlamaForCausalLM has no such layer",
        ),
        (
            lambda: with_tensor(lora(1), f"{LAYERS}.0.self_attn.q_proj.lora_A.weight", torch.zeros(4, 31)),
            r"q_proj: lora_A.weight has shape \(4, 31\), expected \(4, 32\)",
        ),
        (
            lambda: in_memory(
                get_peft_model(
                    llama(), LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa", task_type=TASK)
                )
            ),
            "init_lora_weights='pissa': the adapter runs next to a changed base",
        ),
        (
            lambda: InMemory("digest", AdaLoraConfig(total_step=10, task_type=TASK), {}),
            "ADALORA adapter: its file holds no tensors, so it would change nothing",
        ),
        (
            lambda: InMemory(
                "id", PromptTuningConfig(num_virtual_tokens=2, task_type=TASK), {"other": torch.zeros(1)}
            ),
            "PROMPT_TUNING adapter: expected 'prompt_embeddings' alone, found other",
        ),
    ],
    ids=["trained norm", "no such layer", "shape", "pissa", "no tensors", "no virtual tokens"],
)
def test_adapters_that_do_not_fit_are_refused_by_name(engine, adapter, message):
    with pytest.raises(ConfigError, match=message):
        engine.add_adapter("x", adapter())
    assert engine.adapters == ()


@pytest.mark.parametrize("size", [1e15, 1e30])
def test_an_adapter_whose_values_diverge_spoils_its_own_answers_only(tokenizer, size):
    options = EngineOptions(prefill_chunk=8, max_batch=5, kv_budget_tokens=5 * 64)
    engine = Engine(llama(), tokenizer, options)
    wild = lora(9)
    engine.add_adapter(
        "wild", dataclasses.replace(wild, tensors={k: v * size for k, v in wild.tensors.items()})
    )
    names = [None, "0", "1", "2"]
    for name in names[1:]:
        engine.add_adapter(name, lora(int(name)))
    for turn in range(3):
        for number, name in enumerate(["wild", *names, "wild", *names]):
            prompt = PROMPT if number % 2 or name != "wild" else LONG
            engine.submit(Request(f"{turn} {number} {name}", prompt, free(), name))
    outputs = drain(engine)
    for request, own in outputs.items():
        name = request.split()[-1]
        if name == "wild":  # the smaller ones are large and finite to the end
            assert (own[-1].finish_reason == "failed") == (size == 1e30) == (own[-1].token_id is None)
        else:
            assert [one.token_id for one in own] == expected(None if name == "None" else int(name)), request
