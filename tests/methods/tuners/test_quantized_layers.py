"""LoRA on bases that bitsandbytes or torchao have packed, as far as their CPU builds run."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.engine.adapters import in_memory
from tests.packed import KINDS, installed, pack, save_base
from tests.store.tiny import tiny_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from manytune import (
    AdapterError,
    BottleneckConfig,
    ConfigError,
    FullConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftWarning,
    PrefixTuningConfig,
    PromptTuningConfig,
    SelectiveConfig,
    StoreError,
    VeraConfig,
    get_peft_model,
)
from manytune.methods.registry import terms_of
from manytune.methods.tuners.quantized_layers import dequantized_weight, keep_differentiable
from manytune.model.accounting import count_parameters
from manytune.store.base import load_base

#: What the packing itself costs when a merged layer computes in full precision; 8-bit bitsandbytes rounds inputs, too.
MERGED = {"bitsandbytes-4bit": 1e-5, "bitsandbytes-8bit": 2e-2, "torchao-int8": 1e-5}
TARGETS = ["q_proj", "v_proj", "down_proj"]

# bitsandbytes says how it computes 8-bit products of float32 inputs, at each product.
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"), vocabulary=64)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    installed(request.param)
    return str(request.param)


@pytest.fixture
def base(kind: str, directory: Path) -> Any:
    return pack(kind, directory)


def adapted(base: nn.Module, **options: Any) -> PeftModel:
    options = {
        "task_type": "CAUSAL_LM",
        "r": 4,
        "target_modules": TARGETS,
        "init_lora_weights": False,
    } | options
    torch.manual_seed(1)
    return get_peft_model(base, LoraConfig(**options)).eval()


def ids() -> Tensor:
    return torch.randint(3, 64, (2, 8), generator=torch.Generator().manual_seed(2))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=ids()).logits
    return result


def test_at_the_start_the_output_is_the_bases(base: Any) -> None:
    model = adapted(base, init_lora_weights=True)
    with model.disable_adapter():
        expected = logits(model)
    assert torch.equal(logits(model), expected)


def test_gradients_reach_the_lowest_layer_after_an_evaluation(kind: str, directory: Path) -> None:
    # bitsandbytes repacks 4-bit weights for evaluation on some CPUs, and lets no gradient through afterwards.
    found = []
    for evaluated in (False, True):
        model = adapted(pack(kind, directory))
        if evaluated:
            logits(model)
        model.train()
        model(input_ids=ids(), labels=ids()).loss.backward()
        lowest = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default")
        found.append(lowest.get_parameter("weight").grad)
    assert torch.equal(found[0], found[1])


def test_a_base_that_was_repacked_before_is_refused(directory: Path) -> None:
    installed("bitsandbytes")
    base = pack("bitsandbytes-4bit", directory)
    # What it leaves behind on CPUs with AVX512-BF16, whether or not this is one.
    layer = base.model.layers[0].mlp.up_proj
    layer.support_avx512bf16_for_cpu = layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ConfigError, match="Load the base again, and attach the adapter before calling it"):
        adapted(base)


def test_the_base_is_packed_and_reported_so(base: Any, kind: str) -> None:
    status = adapted(base).get_layer_status()
    assert {layer.quantization_backend for layer in status} == {kind.partition("-")[0]}


def test_loss_and_gradients_are_hf_pefts(kind: str, directory: Path) -> None:
    mine = adapted(pack(kind, directory))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": TARGETS, "init_lora_weights": False}
        torch.manual_seed(1)
        theirs = peft.get_peft_model(pack(kind, directory), peft.LoraConfig(**options)).eval()
    losses = []
    for model in (mine.train(), theirs.train()):
        loss = model(input_ids=ids(), labels=ids()).loss
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)
    expected = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    found = {n: p.grad for n, p in mine.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys() and all(".lora_" in name for name in found)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_training_lowers_the_loss_and_leaves_the_packed_weights_alone(base: Any) -> None:
    layer = base.model.layers[0].self_attn.q_proj
    before = dequantized_weight(layer)
    model = adapted(base, init_lora_weights=True)
    model.train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = model(input_ids=ids(), labels=ids()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(dequantized_weight(layer), before)


def test_a_saved_adapter_gives_the_same_logits_on_a_base_packed_again(
    kind: str, directory: Path, tmp_path: Path
) -> None:
    model = adapted(pack(kind, directory))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(pack(kind, directory), tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_merging_dequantizes_and_says_so(base: Any, kind: str) -> None:
    model = adapted(base)
    layer: Any = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    packed = layer.base_layer
    expected = (
        dequantized_weight(packed)
        + (layer.lora_B["default"].weight @ layer.lora_A["default"].weight) * layer.scaling["default"]
    )
    unmerged, disabled = logits(model), None
    with model.disable_adapter():
        disabled = logits(model)
    library = kind.partition("-")[0]
    with pytest.warns(
        PeftWarning, match=rf"Merging dequantizes.*{library}.*6 layers are kept in full precision"
    ):
        model.merge_adapter()
    assert type(layer.base_layer.weight) is nn.Parameter
    torch.testing.assert_close(layer.base_layer.weight, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits(model), unmerged, rtol=MERGED[kind], atol=MERGED[kind] * 10)
    with model.disable_adapter():
        assert torch.equal(logits(model), disabled)
    model.unmerge_adapter()
    assert layer.base_layer is packed
    assert torch.equal(logits(model), unmerged)


def test_merging_for_good_leaves_plain_layers(base: Any, kind: str) -> None:
    model = adapted(base)
    unmerged = logits(model)
    with pytest.warns(PeftWarning, match="Merging dequantizes"):
        plain = model.merge_and_unload()
    torch.testing.assert_close(logits(plain), unmerged, rtol=MERGED[kind], atol=MERGED[kind] * 10)
    layer = plain.get_submodule("model.layers.1.mlp.down_proj")
    assert isinstance(layer, nn.Linear) and layer.weight.dtype == torch.float32
    assert layer.weight.shape == (64, 128)


@pytest.mark.parametrize("targets", [["q_proj"], "all-linear"])
def test_a_base_with_an_adapter_merged_in_is_saved_and_loaded(
    base: Any, targets: Any, tmp_path: Path
) -> None:
    model = adapted(base, target_modules=targets)
    with pytest.warns(PeftWarning, match="Merging dequantizes"):
        merged: Any = model.merge_and_unload()
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    keep_differentiable(again)  # as `merged` is: on some CPUs 4-bit layers compute in bfloat16 otherwise
    assert type(again.model.layers[0].self_attn.q_proj) is nn.Linear
    assert torch.equal(logits(again), logits(merged))


def test_detaching_gives_the_packed_layers_back(base: Any) -> None:
    packed = base.model.layers[0].self_attn.q_proj
    model = adapted(base)
    with model.disable_adapter():
        expected = logits(model)
    with pytest.warns(PeftWarning, match="Merging dequantizes"):
        model.merge_adapter()
    plain = model.unload()
    assert plain.get_submodule("model.layers.0.self_attn.q_proj") is packed
    assert torch.equal(logits(plain), expected)


def test_a_refused_merge_leaves_the_packed_layers(base: Any) -> None:
    model = adapted(base)
    unmerged = logits(model)
    layer: Any = model.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
    good = layer.lora_A["default"].weight.data.clone()
    layer.lora_A["default"].weight.data.fill_(float("nan"))
    with (
        pytest.warns(PeftWarning, match="Merging dequantizes"),
        pytest.raises(AdapterError, match="NaNs detected in the merged weights"),
    ):
        model.merge_adapter(safe_merge=True)
    layer.lora_A["default"].weight.data.copy_(good)
    assert torch.equal(logits(model), unmerged)


def test_a_packed_weight_has_no_low_memory_merge(base: Any, kind: str) -> None:
    model = adapted(base)
    with (
        pytest.warns(PeftWarning, match="Merging dequantizes"),
        pytest.raises(AdapterError, match=rf"can't be merged in low memory.*{kind.partition('-')[0]}"),
    ):
        model.merge_adapter(low_memory=True)


def test_dora_takes_the_norm_of_the_unpacked_weight(base: Any, kind: str) -> None:
    model = adapted(base, use_dora=True)
    layer: Any = model.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(3))
    weight = dequantized_weight(layer.base_layer)
    total = (
        weight + layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    )
    magnitude = layer.lora_magnitude_vector["default"].weight
    expected = x @ (magnitude[:, None] * total / total.norm(dim=1, keepdim=True)).T
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=MERGED[kind], atol=MERGED[kind] * 10)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_initialisation_that_changes_the_weight_is_refused(base: Any, kind: str, init: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"init_lora_weights='{init}'.*quantized by {kind.partition('-')[0]}"
    ):
        adapted(base, init_lora_weights=init)


@pytest.mark.parametrize(
    "config",
    [
        FullConfig(),
        SelectiveConfig(parameters=["mlp"]),
        SelectiveConfig(parameters=["layernorm", "q_proj.weight"]),
        SelectiveConfig(parameters="layernorm", modules_to_save=["down_proj"]),
        LoraConfig(target_modules=["q_proj"], modules_to_save=["down_proj"]),
        IA3Config(target_modules=["k_proj"], feedforward_modules=[], modules_to_save=["mlp"]),
    ],
    ids=["full", "selective", "norms-and-more", "selective-module", "lora-module", "ia3-module"],
)
def test_packed_weights_that_would_train_are_refused(base: Any, kind: str, config: PeftConfig) -> None:
    modules = dict(base.named_modules())
    with pytest.raises(
        ConfigError,
        match=rf"would train .*weight.*{kind.partition('-')[0]} has packed into a few bits.*\. \w+",
    ):
        get_peft_model(base, config)
    assert dict(base.named_modules()) == modules


@pytest.mark.parametrize(
    "config",
    [
        SelectiveConfig(parameters="layernorm"),
        BottleneckConfig(bottleneck_size=4),
        BottleneckConfig(bottleneck_size=4, style="parallel"),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        VeraConfig(r=4, target_modules=["q_proj"]),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
        PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    ],
    ids=["norms", "bottleneck", "parallel", "ia3", "vera", "head", "prompt", "prefix"],
)
def test_methods_that_leave_packed_weights_alone_train(base: Any, config: PeftConfig) -> None:
    model = get_peft_model(base, copy.deepcopy(config))  # which gets the base's name
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = model(input_ids=ids(), labels=ids()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_parameters_are_counted_unpacked(base: Any) -> None:
    expected = sum(p.numel() for p in LlamaForCausalLM(base.config).parameters())
    assert count_parameters(base)[1] == expected


def test_a_packed_base_is_loaded_from_its_directory(kind: str, base: Any, tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    base.save_pretrained(tmp_path)
    loaded = load_base(str(tmp_path))
    keep_differentiable(base)  # as load_base does
    assert torch.equal(logits(loaded.model), logits(base))
    assert load_base(str(tmp_path)).fingerprint == loaded.fingerprint


def test_a_packed_base_without_its_library_names_the_extra(
    kind: str, base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    base.save_pretrained(tmp_path)
    for module in ("bnb_4bit", "bnb_8bit", "torchao"):
        name = "is_torchao_available" if module == "torchao" else "is_bitsandbytes_available"
        monkeypatch.setattr(f"transformers.quantizers.quantizer_{module}.{name}", lambda *_: False)
    with pytest.raises(StoreError, match=rf"{kind.partition('-')[0]}.*pip install .*\[quant\]'"):
        load_base(str(tmp_path))


def test_terms_are_those_of_the_unpacked_weight(base: Any, kind: str) -> None:
    model = adapted(base, use_dora=True)
    terms = model.tuner.live_terms("default")
    path = "model.layers.0.mlp.down_proj"
    layer: Any = model.get_submodule(f"base_model.model.{path}")
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(3))
    update, gains = terms.updates[path], terms.factors[path].outputs
    assert gains is not None and update.down is not None
    with torch.no_grad():
        found = gains * layer.base_layer(x) + update.scaling * x @ update.down.t() @ update.up.t()
        torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5)
    saved = terms_of(in_memory(model), model.get_base_model())
    assert torch.equal(saved.updates[path].up, update.up)
