"""Requests to an encoder-decoder: what is read once, limits, forced tokens, and what is refused."""

from dataclasses import replace

import pytest
import torch
from tests.engine.adapters import END, VOCABULARY, attached, in_memory
from tests.engine.encoder_decoder.bases import TASK, bart, t5

from manytune.engine.encoder_decoder.runner import EncoderDecoderRunner
from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.errors import ConfigError, ContextLengthError, RequestError
from manytune.methods.lora.config import LoraConfig
from manytune.methods.prefix_tuning.model import PrefixTuningConfig
from manytune.methods.prompt_tuning.model import PromptTuningConfig

PROMPT, OTHER = (5, 6, 7, 8), (9, 10, 11)
SHORT = SamplingParams(max_new_tokens=3, ignore_eos=True)


@pytest.fixture(scope="module")
def model():
    return t5()


@pytest.fixture(scope="module")
def lora():
    return in_memory(attached(t5(), LoraConfig(r=2, target_modules=["q", "v"], task_type=TASK), seed=1))


@pytest.fixture
def read(monkeypatch):
    """Lengths of what encoders read, pass by pass."""
    passes = []
    encode = EncoderDecoderRunner._encode
    monkeypatch.setattr(
        EncoderDecoderRunner,
        "_encode",
        lambda self, sources: passes.append([one.length for one, _ in sources]) or encode(self, sources),
    )
    return passes


def asked(name, prompt=PROMPT, params=SHORT, **options):
    return Request(name, prompt, params, **options)


def finish(engine):
    while engine.busy:
        engine.step()
        engine.check_integrity()


def test_equal_inputs_of_one_adapter_and_tenant_are_read_once(model, lora, tokenizer, read):
    engine = Engine(model, tokenizer)
    engine.add_adapter("lora", lora)
    found = engine.generate(
        [
            asked("a"),
            asked("b"),
            asked("c", adapter="lora"),
            asked("d", tenant="another"),
            asked("e", prompt=OTHER),
        ]
    )
    assert sorted(length for one in read for length in one) == [3, 4, 4, 4]
    assert [one.usage.cached_tokens for one in found] == [0, 4, 0, 0, 0]
    assert found[0].token_ids == found[1].token_ids
    assert engine.counters().prompt_tokens == 15


def test_an_input_that_a_running_request_has_read_is_not_read_again(model, tokenizer, read):
    engine = Engine(model, tokenizer)
    engine.submit(asked("a", params=replace(SHORT, max_new_tokens=8)))
    engine.step()
    engine.submit(asked("b"))
    finish(engine)
    assert read == [[4]] and engine.counters().cached_tokens == 4


def test_inputs_of_ended_requests_are_kept_within_the_budget(model, tokenizer, read):
    engine = Engine(model, tokenizer, EngineOptions(prefix_cache_tokens=5))
    for name, prompt in (("a", PROMPT), ("b", PROMPT), ("c", OTHER), ("d", PROMPT)):
        engine.generate([asked(name, prompt)])
        engine.check_integrity()
    assert read == [[4], [3], [4]], "4 tokens and 3 don't fit into 5"
    assert engine.counters().prefix_tokens == 4


def test_nothing_is_kept_without_a_budget(model, tokenizer, read):
    engine = Engine(model, tokenizer)
    for name in "ab":
        engine.generate([asked(name)])
    assert read == [[4], [4]] and engine.counters().prefix_tokens == 0


def test_the_head_of_an_answer_and_its_end_at_the_limit_are_forced_as_in_transformers(tokenizer):
    base = bart()
    engine = Engine(base, tokenizer)
    (cut,) = engine.generate([asked("a", params=SamplingParams(max_new_tokens=5, logprobs=0))])
    assert [entry.token_id for entry in cut.logprobs][::4] == [2, END]
    assert cut.finish_reason == "length", "the model didn't end it"
    (whole,) = engine.generate([asked("b", params=SamplingParams(max_new_tokens=5, ignore_eos=True))])
    assert whole.token_ids[0] == 2 and whole.token_ids[-1] != END


def test_a_drawn_answer_depends_on_its_seed_alone(model, tokenizer):
    engine = Engine(model, tokenizer)
    params = SamplingParams(max_new_tokens=6, temperature=1.5, seed=3, ignore_eos=True)
    (alone,) = engine.generate([asked("a", params=params)])
    among = engine.generate(
        [asked("b", OTHER), asked("c", params=params), asked("d", params=replace(params, seed=4))]
    )
    assert alone.token_ids == among[1].token_ids != among[2].token_ids


def test_the_repetition_penalty_counts_the_decoders_tokens_as_transformers_does(model, tokenizer):
    expected = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=6, repetition_penalty=3.0, do_sample=False, num_beams=1
    )
    (found,) = Engine(model, tokenizer).generate(
        [asked("a", params=SamplingParams(max_new_tokens=6, repetition_penalty=3.0))]
    )
    assert list(found.token_ids) == expected[0, 1:].tolist()


@pytest.mark.parametrize(
    ("prompt", "new", "message"),
    [
        ((5,) * 41, 4, "has 41 tokens, but the model's encoder has 40 positions"),
        ((5,), 41, "has 41 tokens to generate, but the model's decoder has 40 positions"),
    ],
)
def test_positions_of_encoder_and_decoder_are_limits_of_their_own(tokenizer, prompt, new, message):
    engine = Engine(bart(), tokenizer)
    engine.submit(asked("fits", (5,) * 40, SamplingParams(max_new_tokens=40)))
    with pytest.raises(ContextLengthError, match=message):
        engine.submit(asked("a", prompt, SamplingParams(max_new_tokens=new)))


@pytest.mark.parametrize(
    ("prompt", "new", "message"),
    [
        ((5,) * 129, 4, "has 129 tokens for the encoder"),
        ((5,), 128, "needs up to 129 tokens of the KV cache"),
    ],
)
def test_the_caches_budget_limits_inputs_and_answers(model, tokenizer, prompt, new, message):
    engine = Engine(model, tokenizer, EngineOptions(kv_budget_tokens=128))
    with pytest.raises(ContextLengthError, match=message):
        engine.submit(asked("a", prompt, SamplingParams(max_new_tokens=new)))


def test_virtual_tokens_take_positions_where_they_are_read(tokenizer):
    engine = Engine(bart(), tokenizer)
    for name, config in (
        ("prompt", PromptTuningConfig(num_virtual_tokens=3, task_type=TASK)),
        ("prefix", PrefixTuningConfig(num_virtual_tokens=3, task_type=TASK)),
    ):
        engine.add_adapter(name, in_memory(attached(bart(), config, seed=1)))
    long, limit = (5,) * 38, SamplingParams(max_new_tokens=38)
    with pytest.raises(ContextLengthError, match="has 41 tokens, but the model's encoder"):
        engine.submit(asked("a", long, adapter="prompt"))
    with pytest.raises(ContextLengthError, match="38 tokens to generate after 3 of its adapter"):
        engine.submit(asked("b", PROMPT, limit, adapter="prefix"))
    engine.submit(asked("c", long, adapter="prefix"))
    engine.submit(asked("d", PROMPT, limit, adapter="prompt"))


def test_log_probabilities_of_the_encoders_input_are_refused(model, tokenizer):
    with pytest.raises(RequestError, match="gives no log probabilities of its prompt"):
        Engine(model, tokenizer).submit(asked("a", params=SamplingParams(prompt_logprobs=0)))


def test_an_adapter_of_a_layer_of_positions_is_refused_and_not_registered(model, tokenizer):
    config = LoraConfig(r=2, target_modules=["relative_attention_bias", "q"], task_type=TASK)
    engine = Engine(model, tokenizer)
    with pytest.raises(
        ConfigError, match="relative_attention_bias: the adapter changes a layer of positions"
    ):
        engine.add_adapter("positions", in_memory(attached(t5(), config, seed=1)))
    assert engine.adapters == ()


def test_an_adapter_that_diverges_in_the_encoder_fails_its_own_requests_only(model, lora, tokenizer):
    broken = replace(
        lora,
        digest="broken",
        tensors={
            name: torch.full_like(tensor, torch.inf) if ".encoder." in name else tensor
            for name, tensor in lora.tensors.items()
        },
    )
    engine = Engine(model, tokenizer, EngineOptions(prefix_cache_tokens=100))
    engine.add_adapter("lora", lora)
    engine.add_adapter("broken", broken)
    (expected,) = engine.generate([asked("alone", adapter="lora")])
    for attempt in range(2):  # nothing that it computed is kept for the second
        found = engine.generate(
            [asked(f"a{attempt}", adapter="broken"), asked(f"b{attempt}", OTHER, adapter="broken")]
        )
        assert {one.finish_reason for one in found} == {"failed"}
    (after,) = engine.generate([asked("after", adapter="lora")])
    assert after.token_ids == expected.token_ids


def test_the_model_is_untouched_between_steps(model, lora, tokenizer):
    inputs = {"input_ids": torch.tensor([PROMPT]), "decoder_input_ids": torch.tensor([[0, 5]])}
    with torch.no_grad():
        before = model(**inputs).logits
    engine = Engine(model, tokenizer)
    engine.add_adapter("lora", lora)
    engine.submit(asked("a", adapter="lora"))
    while engine.busy:
        engine.step()
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, before)


def test_all_of_the_vocabulary_is_the_decoders(model, tokenizer):
    with pytest.raises(RequestError, match=f"contains token {VOCABULARY}"):
        Engine(model, tokenizer).submit(asked("a", (VOCABULARY,)))
