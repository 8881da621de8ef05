"""Terms put together from parts, and what an adapter's file must be to have any."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.engine.adapters import InMemory, in_memory
from tests.methods.tiny_models import GPT2, LLAMA, T5, Family
from torch import Tensor, nn

from manytune import (
    BottleneckConfig,
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from manytune.methods.config import PeftConfig
from manytune.methods.registry import terms_of
from manytune.methods.tuners.base import Tuner
from manytune.methods.tuners.base_layers import BaseLayers
from manytune.methods.tuners.terms import Factors, Terms, TermsError, Update, joined

ONES = torch.ones(3)


def update() -> Terms:
    return Terms(updates={"a": Update(torch.ones(2, 3), torch.ones(3, 2))})


def test_parts_at_different_layers_are_put_together() -> None:
    embeddings = torch.ones(2, 4)
    whole = joined([update(), Terms(factors={"b": Factors(outputs=ONES)}), Terms(embeddings=embeddings)])
    assert set(whole.updates) == {"a"} and set(whole.factors) == {"b"}
    assert whole.embeddings is embeddings and whole.activation is None
    assert joined([]) == Terms()


def test_shifts_at_one_layer_add_up_whichever_comes_first() -> None:
    scaled, shifted = Factors(outputs=2 * ONES, shift=ONES), Factors(shift=3 * ONES)
    for pair in ((scaled, shifted), (shifted, scaled)):
        found = joined(Terms(factors={"a": one}) for one in pair).factors["a"]
        assert found.outputs is scaled.outputs and found.shift is not None
        assert torch.equal(found.shift, 4 * ONES)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([update(), update()], "a: the adapter has two updates for one layer"),
        ([Terms(factors={"a": Factors(outputs=ONES)})] * 2, "a: the adapter scales one layer twice"),
        ([Terms(embeddings=ONES)] * 2, "two soft prompts"),
        ([update(), Terms({"b": update().updates["a"]}, "relu")], "with a nonlinearity and others without"),
    ],
)
def test_parts_that_want_one_place_are_refused(parts: list[Terms], message: str) -> None:
    with pytest.raises(TermsError, match=message):
        joined(parts)


def test_a_method_that_does_not_state_its_terms_says_so() -> None:
    with pytest.raises(TermsError, match=r"tuners\.base\.Tuner doesn't state its terms\. Use it attached"):
        Tuner.terms(PeftConfig(), {}, nn.Linear(2, 2))


def saved(family: Family, config: PeftConfig) -> InMemory:
    return in_memory(get_peft_model(family.build(), copy.deepcopy(config)))


IA3 = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
BOTTLENECK = BottleneckConfig(bottleneck_size=4)
PROMPT = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
PREFIX = PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
LAYER = "base_model.model.model.layers.0."


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (
            IA3,
            {f"{LAYER}self_attn.k_proj.ia3_l": torch.ones(15, 1)},
            r"layers\.0\.self_attn\.k_proj: ia3_l has shape \(15, 1\), expected \(16, 1\)",
        ),
        (
            IA3,
            {f"{LAYER}mlp.down_proj.ia3_l": torch.ones(1, 47)},
            r"mlp\.down_proj: ia3_l has shape \(1, 47\), expected \(1, 48\)",
        ),
        (
            BOTTLENECK,
            {f"{LAYER}mlp.down_proj.bottleneck_up.bias": torch.ones(31)},
            r"down_proj: bottleneck_up\.bias has shape \(31,\), expected \(32,\)",
        ),
        (
            BOTTLENECK,
            {f"{LAYER}mlp.down_proj.bottleneck_up.bias": None},
            r"down_proj: expected .* and bottleneck_up\.bias, found",
        ),
        (
            PROMPT,
            {"prompt_embeddings": torch.ones(2, 31)},
            r"virtual tokens: prompt_embeddings has shape \(2, 31\), expected \(2, 32\)",
        ),
        (PROMPT, {"prompt_embeddings": torch.ones(3, 32)}, r"has shape \(3, 32\), expected \(2, 32\)"),
        (PREFIX, {"prompt_embeddings": torch.ones(2, 63)}, r"prefix: .* \(2, 63\), expected \(2, 64\)"),
        (
            PREFIX,
            {"other": torch.ones(2)},
            "expected 'prompt_embeddings' alone, found other, prompt_embeddings",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_base_are_refused(
    config: PeftConfig, changes: dict[str, Tensor | None], message: str
) -> None:
    adapter = saved(LLAMA, config)
    tensors = {name: t for name, t in {**adapter.tensors, **changes}.items() if t is not None}
    with pytest.raises(TermsError, match=message):
        terms_of(InMemory("x", adapter.config, tensors), LLAMA.build())


@pytest.mark.parametrize("config", [LoraConfig(), IA3, BOTTLENECK], ids=lambda config: config.peft_type)
def test_a_file_without_an_adapters_tensors_is_refused(config: PeftConfig) -> None:
    others = {"base_model.model.lm_head.weight": LLAMA.build().get_parameter("lm_head.weight").detach()}
    for tensors, message in (({}, "its file holds no tensors"), (others, "found none of them")):
        with pytest.raises(TermsError, match=message):
            terms_of(InMemory("x", config, tensors), LLAMA.build())


def test_parallel_adapters_name_the_layer_that_they_read_beside() -> None:
    config = BottleneckConfig(style="parallel", bottleneck_size=4, layers_to_transform=[1])
    model = get_peft_model(LLAMA.build(), config)
    for terms in (model.tuner.live_terms("default"), terms_of(in_memory(model), LLAMA.build())):
        assert {path: update.source for path, update in terms.updates.items()} == {
            "model.layers.1.mlp.down_proj": "model.layers.1.mlp.gate_proj"
        }
        assert not terms.reads_output


@pytest.mark.parametrize(
    ("config", "shared"),
    [
        (PROMPT, lambda terms: terms.embeddings),
        (PREFIX, lambda terms: terms.prefix),
        (IA3, lambda terms: terms.factors["model.layers.0.self_attn.k_proj"].outputs),
    ],
    ids=["prompt", "prefix", "ia3"],
)
def test_terms_share_the_memory_of_what_is_attached(
    config: PeftConfig, shared: Callable[[Terms], Tensor]
) -> None:
    model = get_peft_model(LLAMA.build(), copy.deepcopy(config))
    starts = {parameter.data_ptr() for parameter in model.parameters()}
    assert shared(model.tuner.live_terms("default")).data_ptr() in starts


def test_the_base_is_found_under_what_is_attached() -> None:
    plain: Any = GPT2.build()
    model = get_peft_model(
        copy.deepcopy(plain), LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=["ln_f"])
    )
    model.merge_adapter()
    layers = BaseLayers(model.get_base_model())
    attention = layers.at("transformer.h.0.attn.c_attn.base_layer")
    assert attention.path == "transformer.h.0.attn.c_attn"
    assert (attention.inputs, attention.outputs) == (32, 96)
    expected = plain.get_submodule(attention.path).weight
    assert torch.equal(attention.weight, expected.t())
    assert [layer.path for layer in layers] == [path for path, _ in plain.named_modules()]
    tied = layers.holders(layers.at("lm_head"), "weight")
    assert [(layer.path, name) for layer, name in tied] == [
        ("transformer.wte", "weight"),
        ("lm_head", "weight"),
    ]


def test_an_encoder_decoder_reads_the_first_half_of_a_prompt() -> None:
    prompt = saved(T5, PromptTuningConfig(num_virtual_tokens=2, task_type="SEQ_2_SEQ_LM"))
    embeddings = terms_of(prompt, T5.build()).embeddings
    assert embeddings is not None
    assert torch.equal(embeddings, prompt.tensors["prompt_embeddings"][:2])
