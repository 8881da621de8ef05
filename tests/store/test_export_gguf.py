from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from safetensors.torch import load_file
from tests.store.adapters_made import make_adapter
from tests.store.tiny import tiny_model
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from manytune import LoraConfig, PeftModel, get_peft_model
from manytune.errors import StoreError
from manytune.store.base import Base
from manytune.store.export_gguf import export_gguf

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GGUF_NAMES = dict(
    zip(ALL, ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"], strict=True)
)


def read(path: Path) -> tuple[dict[str, Any], dict[str, numpy.ndarray]]:
    """A file's fields and tensors."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: numpy.array(tensor.data) for tensor in reader.tensors}


def test_llama_cpp_finds_the_update_of_each_weight_in_its_own_order_of_rows(
    tmp_path: Path, tiny_base: Base
) -> None:
    """The other order is transformers' own, from where it reads llama.cpp's files."""
    adapter = make_adapter(tmp_path / "a", tiny_base, target_modules=ALL)
    export_gguf(adapter, tmp_path / "a.gguf", tiny_base.model.config)
    fields, found = read(tmp_path / "a.gguf")
    assert fields["general.type"] == "adapter"
    assert fields["general.architecture"] == "llama"
    assert fields["adapter.type"] == "lora"
    alpha = fields["adapter.lora.alpha"]
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert len(found) == len(tensors) == 2 * 2 * len(ALL)
    for name, a in tensors.items():
        if "lora_A" not in name:
            continue
        number, module = name.split(".")[4], name.split(".")[6]
        mine = f"blk.{number}.{GGUF_NAMES[module]}.weight"
        low, high = found[f"{mine}.lora_a"], found[f"{mine}.lora_b"]
        delta = alpha / high.shape[1] * high @ low
        if module in ("q_proj", "k_proj"):
            delta = LlamaTensorProcessor()._reverse_permute_weights(delta, 2, 2)
        expected = 8 / 2 * tensors[name.replace("lora_A", "lora_B")] @ a
        numpy.testing.assert_allclose(delta, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_grouped_keys_are_reordered_by_their_own_heads() -> None:
    from manytune.store.export_gguf import llama_cpp_order

    rows = torch.arange(24.0).view(12, 2)
    back = LlamaTensorProcessor()._reverse_permute_weights(llama_cpp_order(rows, 3).numpy(), 6, 3)
    assert numpy.array_equal(back, rows.numpy())


def delta_of(fields: dict[str, Any], found: dict[str, numpy.ndarray], name: str) -> numpy.ndarray:
    """What llama.cpp adds to a weight: scale · B A, and alpha 0 would mean a scale of 1."""
    low, high = found[f"{name}.lora_a"], found[f"{name}.lora_b"]
    alpha = fields["adapter.lora.alpha"]
    assert alpha != 0
    return alpha / high.shape[1] * high @ low


def merged_deltas(adapter: Path, model: Any) -> dict[str, numpy.ndarray]:
    """What merging an adapter adds to each weight of a float64 base."""
    model = model.double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {name: (p - before[name]).detach().numpy() for name, p in merged.named_parameters()}


def of_qwen2(base: Base) -> Qwen2Config:
    """The tiny base's sizes for an architecture whose rows keep their order."""
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    own = {name: getattr(base.model.config, name) for name in sizes}
    return Qwen2Config(num_key_value_heads=own["num_attention_heads"], **own)


def test_a_plain_adapters_factors_and_alpha_are_in_the_file_bit_for_bit(
    tmp_path: Path, tiny_base: Base
) -> None:
    adapter = make_adapter(tmp_path / "a", tiny_base, r=3, lora_alpha=16)
    export_gguf(adapter, tmp_path / "a.gguf", of_qwen2(tiny_base))
    fields, found = read(tmp_path / "a.gguf")
    assert fields["adapter.lora.alpha"] == 16.0
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        number, module, factor = name.split(".")[4], name.split(".")[6], name.split(".")[7]
        mine = found[f"blk.{number}.{GGUF_NAMES[module]}.weight.{factor.lower()}"]
        assert numpy.array_equal(mine, tensor.numpy())


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True, "r": 4},
        {"lora_alpha": 6, "rank_pattern": {"q_proj": 3}},
        {"lora_alpha": 6, "alpha_pattern": {"q_proj": 5}},
        {"lora_alpha": 6, "alpha_pattern": {"q_proj": 0}},
        {"lora_alpha": 0},
        {
            "method": "adalora",
            **{"total_step": 10, "init_r": 5, "target_r": 2, "target_modules": "all-linear"},
            "rank_pattern": {
                "model.layers.0.self_attn.q_proj.lora_E": [True, False, False, True, True],
                "model.layers.1.mlp.up_proj.lora_E": [False] * 5,
            },
        },
        {"method": "vera", "r": 7},
    ],
    ids=str,
)
def test_whatever_the_scaling_llama_cpp_adds_what_merging_adds(
    options: dict[str, Any], tmp_path: Path, tiny_base: Base
) -> None:
    adapter = make_adapter(tmp_path / "a", tiny_base, **options)
    export_gguf(adapter, tmp_path / "a.gguf", of_qwen2(tiny_base))
    fields, found = read(tmp_path / "a.gguf")
    deltas = merged_deltas(adapter, tiny_model())
    assert len(found) >= 2 * sum(bool(delta.any()) for delta in deltas.values())
    for name in found:
        weight = name.removesuffix(".lora_a").removesuffix(".lora_b")
        number, module = weight.split(".")[1], {v: k for k, v in GGUF_NAMES.items()}[weight.split(".")[2]]
        block = "self_attn" if module in ALL[:4] else "mlp"
        expected = deltas[f"model.layers.{number}.{block}.{module}.weight"]
        numpy.testing.assert_allclose(delta_of(fields, found, weight), expected, rtol=1e-4, atol=1e-5)


def untied(config: Any) -> Any:
    config = copy.deepcopy(config)
    config.tie_word_embeddings = False
    return config


def attached(model: Any, target: str, directory: Path) -> Path:
    """A saved adapter of random values on one module of a model, which stays as it is."""
    config = LoraConfig(r=3, lora_alpha=5, target_modules=[target], init_lora_weights=False)
    get_peft_model(copy.deepcopy(model), config).save_pretrained(directory, save_embedding_layers=False)
    return directory


def test_an_update_of_an_output_head_of_its_own_is_written(tmp_path: Path, tiny_base: Base) -> None:
    config = untied(of_qwen2(tiny_base))
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    adapter = attached(model, "lm_head", tmp_path / "a")
    export_gguf(adapter, tmp_path / "a.gguf", config)
    fields, found = read(tmp_path / "a.gguf")
    assert sorted(found) == ["output.weight.lora_a", "output.weight.lora_b"]
    expected = merged_deltas(adapter, model)["lm_head.weight"]
    numpy.testing.assert_allclose(delta_of(fields, found, "output.weight"), expected, rtol=1e-4, atol=1e-6)


def test_an_update_of_the_embeddings_is_transposed_as_llama_cpp_looks_it_up(
    tmp_path: Path, tiny_base: Base
) -> None:
    config = untied(of_qwen2(tiny_base))
    adapter = attached(Qwen2ForCausalLM(config), "embed_tokens", tmp_path / "a")
    export_gguf(adapter, tmp_path / "a.gguf", config)
    fields, found = read(tmp_path / "a.gguf")
    rows, high = found["token_embd.weight.lora_a"], found["token_embd.weight.lora_b"]
    # Row i of A, multiplied by B, is added to what is looked up for token i.
    looked_up = fields["adapter.lora.alpha"] / high.shape[1] * rows @ high.T
    tensors = load_file(adapter / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.model.embed_tokens.lora_embedding_{factor}"] for factor in "AB")
    numpy.testing.assert_allclose(looked_up, (5 / 3 * b @ a).t().numpy(), rtol=1e-4, atol=1e-6)


def test_a_table_in_the_file_must_be_the_bases_own(tmp_path: Path, tiny_base: Base) -> None:
    config = untied(of_qwen2(tiny_base))
    torch.manual_seed(0)
    model, other = Qwen2ForCausalLM(config), Qwen2ForCausalLM(config)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=["embed_tokens"]))
    adapted.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    for base, message in (
        (None, r"compared with the base's\. Name the base"),
        (lambda: other, r"it has a weight of its own for model\.embed_tokens"),
    ):
        with pytest.raises(StoreError, match=message):
            export_gguf(tmp_path / "a", tmp_path / "a.gguf", config, base)
    export_gguf(tmp_path / "a", tmp_path / "a.gguf", config, lambda: model)
    assert sorted(read(tmp_path / "a.gguf")[1]) == ["token_embd.weight.lora_a", "token_embd.weight.lora_b"]


def test_rows_of_single_tokens_are_written_as_their_difference_from_the_bases(
    tmp_path: Path, tiny_base: Base
) -> None:
    config = untied(of_qwen2(tiny_base))
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    adapted = get_peft_model(
        copy.deepcopy(model), LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[3, 1])
    )
    rows = next(p for name, p in adapted.named_parameters() if "trainable_tokens" in name)
    expected = torch.zeros_like(model.model.embed_tokens.weight)
    expected[3], expected[1] = 1.0, 2.0
    with torch.no_grad():
        rows.add_(torch.tensor([[1.0], [2.0]]))
    adapted.save_pretrained(tmp_path / "a")
    with pytest.raises(StoreError, match="Name the base"):
        export_gguf(tmp_path / "a", tmp_path / "a.gguf", config)
    export_gguf(tmp_path / "a", tmp_path / "a.gguf", config, lambda: model)
    fields, found = read(tmp_path / "a.gguf")
    rows_of_a, high = found["token_embd.weight.lora_a"], found["token_embd.weight.lora_b"]
    looked_up = fields["adapter.lora.alpha"] / high.shape[1] * rows_of_a @ high.T
    numpy.testing.assert_allclose(looked_up, expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "target", "message"),
    [
        (
            LlamaConfig,
            "lm_head",
            r"lm_head shares its weight with the embeddings, which llama\.cpp keeps once",
        ),
        (LlamaConfig, "embed_tokens", r"model\.embed_tokens shares its weight with the output head"),
        (GemmaConfig, "embed_tokens", r"model\.embed_tokens shares its weight with the output head"),
    ],
)
def test_a_weight_that_head_and_embeddings_share_has_no_place_in_the_file(
    config: Any, target: str, message: str, tmp_path: Path
) -> None:
    """llama.cpp would add the one's update to the other, and stops at its shape."""
    own = config(
        **{"vocab_size": 29, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8},
        # llama.cpp's Gemma models have no head of their own.
        tie_word_embeddings=config is LlamaConfig,
    )
    adapter = attached(AutoModelForCausalLM.from_config(own), target, tmp_path / "a")
    with pytest.raises(StoreError, match=message):
        export_gguf(adapter, tmp_path / "a.gguf", own)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ia3"}, r"nothing else, and it scales the (in|out)puts of model.layers.0\S+\. Merge"),
        ({"use_dora": True}, "and it scales the outputs of model.layers.0.self_attn.q_proj"),
        ({"bias": "lora_only", "lora_bias": True}, "and it "),
        ({"modules_to_save": ["lm_head"]}, "and it has a weight of its own for lm_head"),
        ({"method": "bottleneck", "bottleneck_size": 4}, "and it has a network of its own behind a layer"),
        ({"method": "prompt-tuning", "num_virtual_tokens": 3}, "and it has virtual tokens"),
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights='pissa': the adapter runs next to a changed base",
        ),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
def test_what_llama_cpp_cannot_run_is_named(
    options: dict[str, Any], message: str, tmp_path: Path, tiny_base: Base
) -> None:
    adapter = make_adapter(tmp_path / "a", tiny_base, **options)
    with pytest.raises(StoreError, match=message):
        export_gguf(adapter, tmp_path / "a.gguf", untied(tiny_base.model.config))
    assert list(tmp_path.glob("*.gguf*")) == []


def test_an_adapter_of_another_size_than_the_base_is_refused(tmp_path: Path, tiny_base: Base) -> None:
    adapter = make_adapter(tmp_path / "a", tiny_base)
    with pytest.raises(StoreError, match=r"has shape \(2, 16\), expected \(2, 4096\)"):
        export_gguf(adapter, tmp_path / "a.gguf", Qwen2Config(num_hidden_layers=2))


def test_an_architecture_that_is_not_known_is_named(tmp_path: Path, tiny_base: Base) -> None:
    adapter = make_adapter(tmp_path / "a", tiny_base)
    with pytest.raises(
        StoreError, match=r"the base is a 'gpt2' model; adapters of llama, .*Merge the adapter"
    ):
        export_gguf(adapter, tmp_path / "a.gguf", GPT2Config())
