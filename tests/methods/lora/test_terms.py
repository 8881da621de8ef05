"""LoRA's terms in every kind of layer and every state that an attached adapter can be in."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.adapters import InMemory, in_memory
from tests.methods.tiny_models import BERT, GPT2, LLAMA, Family, logits_of, move
from tests.reference import terms as twin
from torch import Tensor, nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from manytune import LoraConfig, PeftModel, PeftWarning, get_peft_model
from manytune.errors import AdapterError
from manytune.methods.checkpoint.format import read_tensors
from manytune.methods.config import PeftConfig
from manytune.methods.registry import terms_of
from manytune.methods.tuners.terms import Terms, TermsError


def gemma() -> nn.Module:
    """Its embeddings are multiplied by √hidden, and tied to the head."""
    torch.manual_seed(0)
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=64,
            pad_token_id=0,
        )
    )


GEMMA = Family("gemma", gemma, "CAUSAL_LM")


def adapted(family: Family, **options: Any) -> PeftModel:
    base = family.build().double().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PeftWarning)
        model = get_peft_model(base, LoraConfig(**{"r": 3, "lora_alpha": 6, **options}))
    move(model)
    return model


def assert_computed_by(terms: Terms, family: Family, expected: Tensor) -> None:
    found = twin.logits(family.build().double().eval(), terms, family.inputs())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        (LLAMA, {"target_modules": ["lm_head", "q_proj"]}),
        (LLAMA, {"target_modules": ["embed_tokens", "v_proj"]}),
        (GPT2, {"target_modules": ["wte", "wpe", "c_fc"]}),
        (GPT2, {"target_modules": ["wte"], "use_dora": True}),
        (GEMMA, {"target_modules": ["embed_tokens"]}),
        (GEMMA, {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
        (GPT2, {"target_modules": ["c_attn", "c_fc"], "lora_bias": True}),
        (GPT2, {"target_modules": ["c_attn", "c_fc"], "bias": "lora_only"}),
        (GPT2, {"target_modules": ["c_attn", "c_fc"], "bias": "lora_only", "use_dora": True}),
        (GPT2, {"target_modules": ["c_attn"], "bias": "all"}),
        (BERT, {"target_modules": ["query"], "bias": "all", "modules_to_save": ["classifier"]}),
        (LLAMA, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
        (
            LLAMA,
            {
                "target_modules": ["q_proj", "down_proj"],
                "use_rslora": True,
                "rank_pattern": {r"layers\.1\.mlp\.down_proj": 5},
                "alpha_pattern": {"q_proj": 1},
            },
        ),
    ],
    ids=lambda value: str(value),
)
def test_terms_of_every_kind_of_layer_say_what_it_computes(family: Family, options: dict[str, Any]) -> None:
    model = adapted(family, **options)
    expected = logits_of(model, family)
    assert not torch.allclose(expected, logits_of(family.build().double().eval(), family), atol=1e-4)
    assert_computed_by(model.tuner.live_terms("default"), family, expected)
    adapter = in_memory(model)
    assert_computed_by(terms_of(adapter, family.build().double()), family, expected)


def test_terms_of_a_saved_adapter_are_the_same_whatever_is_attached_to_the_base() -> None:
    saved = in_memory(adapted(GPT2, target_modules=["c_attn"], use_dora=True, bias="lora_only"))
    plain = terms_of(saved, GPT2.build().double())
    other = adapted(
        GPT2,
        target_modules=["c_attn", "wte"],
        bias="all",
        modules_to_save=["c_fc"],
        init_lora_weights="pissa",
    )
    merged = adapted(GPT2, target_modules=["c_attn"])
    merged.merge_adapter()
    for model in (adapted(GPT2, target_modules=["c_attn", "wte"], modules_to_save=["c_fc"]), merged):
        found = terms_of(saved, model.get_base_model())
        assert found.updates.keys() == plain.updates.keys()
        for path, update in plain.updates.items():
            assert torch.equal(found.updates[path].up, update.up)
    # PiSSA holds W - s·B₀A₀ in the layer; what it took out is known exactly.
    shifted = terms_of(saved, other.get_base_model())
    assert torch.equal(
        shifted.updates["transformer.h.0.attn.c_attn"].up, plain.updates["transformer.h.0.attn.c_attn"].up
    )


def test_live_terms_follow_the_scaling_and_share_the_parameters() -> None:
    model = adapted(LLAMA, target_modules=["q_proj", "v_proj"])
    layer: Any = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    layer.set_scale("default", 0.25)
    layer.scale_layer(3.0)
    terms = model.tuner.live_terms("default")
    update = terms.updates["model.layers.0.self_attn.q_proj"]
    assert update.scaling == 0.25 * 3.0 * (6 / 3) == layer.scaling["default"]
    assert update.down is not None
    assert update.down.data_ptr() == layer.lora_A["default"].weight.data_ptr()
    assert update.up.data_ptr() == layer.lora_B["default"].weight.data_ptr()
    assert not update.down.requires_grad
    assert_computed_by(terms, LLAMA, logits_of(model, LLAMA))


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_live_terms_hold_what_an_adapter_took_out_of_the_weight(init: str, options: dict[str, Any]) -> None:
    model = adapted(LLAMA, target_modules=["q_proj"], init_lora_weights=init, **options)
    expected = logits_of(model, LLAMA)
    terms = model.tuner.live_terms("default")
    assert {update.rank for update in terms.updates.values()} == {6}
    assert_computed_by(terms, LLAMA, expected)
    with model.disable_adapter():  # the whole weight is in place then
        assert_computed_by(model.tuner.live_terms("default"), LLAMA, expected)
    model.merge_adapter()
    assert_computed_by(model.tuner.live_terms("default"), LLAMA, expected)


def test_a_converted_adapter_has_terms_of_twice_the_rank(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PeftWarning)
        model = get_peft_model(
            LLAMA.build().double().eval(),
            LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM"),
        )
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = "pissa"
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.add_(0.05 * torch.randn(parameter.shape, dtype=parameter.dtype))
    model.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "initial")
    )
    config, tensors = PeftConfig.from_pretrained(tmp_path / "plain"), read_tensors(tmp_path / "plain")
    terms = terms_of(InMemory("x", config, tensors), LLAMA.build().double())
    assert {update.rank for update in terms.updates.values()} == {6}
    assert_computed_by(terms, LLAMA, logits_of(model, LLAMA))


def test_a_merged_adapter_has_the_terms_of_the_unmerged_one() -> None:
    model = adapted(GPT2, target_modules=["c_attn", "c_fc"], use_dora=True)
    expected = logits_of(model, GPT2)
    model.merge_adapter()
    assert_computed_by(model.tuner.live_terms("default"), GPT2, expected)


def test_where_the_exact_weight_is_gone_magnitudes_have_no_terms() -> None:
    model = adapted(LLAMA, target_modules=["q_proj"], use_dora=True)
    model.add_adapter("plain", LoraConfig(r=3, target_modules=["q_proj"]))
    with pytest.warns(PeftWarning, match="Merged in low memory"):
        model.merge_adapter(["plain"], low_memory=True)
    with pytest.raises(AdapterError, match="merged in low memory: unmerge them first"):
        model.tuner.live_terms("default")


def test_a_table_saved_along_is_ignored_if_it_is_the_bases_and_in_the_terms_if_it_is_not(
    tmp_path: Path,
) -> None:
    model = adapted(LLAMA, target_modules=["embed_tokens"])
    expected = logits_of(model, LLAMA)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PeftWarning)
        model.save_pretrained(tmp_path)
    config, tensors = PeftConfig.from_pretrained(tmp_path), read_tensors(tmp_path)
    table = "base_model.model.model.embed_tokens.base_layer.weight"
    assert table in tensors
    assert_computed_by(terms_of(InMemory("x", config, tensors), LLAMA.build().double()), LLAMA, expected)
    changed = {**tensors, table: tensors[table] + 1}
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1)
    assert_computed_by(
        terms_of(InMemory("x", config, changed), LLAMA.build().double()), LLAMA, logits_of(model, LLAMA)
    )


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.attention = nn.MultiheadAttention(4, 2)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("conv", r"'conv' \(Conv2d\); what it does there has no terms"),
        ("attention", r"'attention' \(MultiheadAttention\)"),
    ],
)
def test_layers_that_are_neither_linear_nor_embeddings_are_refused_by_name(target: str, message: str) -> None:
    model = get_peft_model(Images(), LoraConfig(r=2, target_modules=[target, "out"]))
    for terms in (
        lambda: model.tuner.live_terms("default"),
        lambda: terms_of(in_memory(model), Images()),
    ):
        with pytest.raises(TermsError, match=message):
            terms()


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {f"{Q}.lora_A.weight": torch.zeros(3, 31)},
            r"layers\.0\.self_attn\.q_proj: lora_A\.weight has shape \(3, 31\), expected \(3, 32\)",
        ),
        (
            {f"{Q}.lora_A.weight": torch.zeros(4, 32), f"{Q}.lora_B.weight": torch.zeros(32, 4)},
            r"lora_A\.weight has shape \(4, 32\), expected \(3, 32\).*or with other options",
        ),
        (
            {f"{Q}.lora_B.weight": None},
            r"q_proj: expected lora_A\.weight and lora_B\.weight, found lora_A\.weight",
        ),
        ({f"{Q}.lora_A.bias": torch.zeros(3)}, r"q_proj: expected .*, found lora_A\.bias, lora_A\.weight"),
        (
            {f"{Q}.lora_magnitude_vector": torch.zeros(31)},
            r"lora_magnitude_vector has shape \(31,\), expected \(32,\)",
        ),
        (
            {"other.q_proj.lora_A.weight": torch.zeros(3, 32)},
            r"names begin with 'base_model\.model\.', found",
        ),
    ],
    ids=["inputs", "rank", "missing", "left over", "magnitude", "name"],
)
def test_tensors_that_do_not_fit_are_refused_with_what_was_expected(
    changes: dict[str, Tensor | None], message: str
) -> None:
    adapter = in_memory(adapted(LLAMA, target_modules=["q_proj"]))
    tensors = {n: t for n, t in {**adapter.tensors, **changes}.items() if t is not None}
    with pytest.raises(TermsError, match=message):
        terms_of(InMemory("x", adapter.config, tensors), LLAMA.build())
