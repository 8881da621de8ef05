"""DoRA against HF PEFT's, and against the paper's formula row by row."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from tests.methods.oracle import assert_same, pair
from tests.methods.tiny_models import FAMILIES, LLAMA, Family
from tests.reference.dora import dora_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from manytune import AdapterError, ConfigError, LoraConfig, PeftModel, get_peft_model


class Net(nn.Module):
    """One layer of every kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(20, 8)
        self.conv1 = nn.Conv1d(8, 6, 3, padding=1)
        self.c1 = Conv1D(5, 6)
        self.lin = nn.Linear(5, 7)
        self.nobias = nn.Linear(7, 4, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        y = torch.tanh(self.conv1(self.emb(ids).transpose(1, 2))).transpose(1, 2).contiguous()
        result: Tensor = self.nobias(torch.tanh(self.lin(torch.tanh(self.c1(y)))))
        return result


IDS = torch.randint(0, 20, (3, 6), generator=torch.Generator().manual_seed(2))
LAYERS = ["emb", "conv1", "c1", "lin", "nobias"]


def run(model: nn.Module) -> Tensor:
    result: Tensor = model(IDS)
    return result


def dora(**options: object) -> LoraConfig:
    return LoraConfig(**{"r": 3, "lora_alpha": 6, "target_modules": LAYERS, "use_dora": True, **options})  # type: ignore[arg-type]


def disturbed(net: nn.Module, config: LoraConfig) -> PeftModel:
    model = get_peft_model(net, config)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


@pytest.mark.parametrize("layer", LAYERS)
def test_each_kind_of_layer_agrees_with_peft(layer: str) -> None:
    options = {"r": 3, "lora_alpha": 6, "use_dora": True, "target_modules": [layer]}
    mine, oracle = pair(Net, LoraConfig(**options), peft.LoraConfig(**options, fan_in_fan_out=layer == "c1"))  # type: ignore[arg-type]
    assert_same(mine, oracle, run)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_models_agree_with_peft(family: Family) -> None:
    options = {"r": 3, "use_dora": True, "task_type": family.task_type}
    mine, oracle = pair(
        family.build,
        LoraConfig(**options),
        peft.LoraConfig(**options, fan_in_fan_out=family.name == "gpt2"),  # type: ignore[arg-type]
    )
    assert_same(mine.eval(), oracle.eval(), lambda model: model(**family.inputs()).logits)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_magnitude_starts_as_in_peft(layer: str) -> None:
    options = {"r": 3, "use_dora": True, "target_modules": [layer]}
    mine, oracle = pair(
        Net,
        LoraConfig(**options),
        peft.LoraConfig(**options, fan_in_fan_out=layer == "c1"),
        fill=False,  # type: ignore[arg-type]
    )
    theirs = dict(oracle.named_parameters())
    for name, parameter in mine.named_parameters():
        if "magnitude" in name:
            torch.testing.assert_close(parameter, theirs[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_merged_weight_is_the_papers(layer: str) -> None:
    net = Net().double()
    before = getattr(net, layer).weight.detach().clone()
    model = disturbed(net, dora(target_modules=[layer]))
    wrapped = getattr(model.base_model.model, layer)
    delta = wrapped.get_delta_weight("default").detach()
    magnitude = wrapped.lora_magnitude_vector["default"].weight.detach()
    unmerged = run(model)
    model.merge_adapter()
    outputs_last = layer in ("emb", "c1")
    expected = dora_weight(*((before.t(), delta.t()) if outputs_last else (before, delta)), magnitude)
    torch.testing.assert_close(
        wrapped.weight, expected.t() if outputs_last else expected, rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(run(model), unmerged, rtol=1e-10, atol=1e-10)
    model.unmerge_adapter()
    assert torch.equal(wrapped.weight, before)


def test_two_active_adapters_merge_to_what_they_give_beside_each_other() -> None:
    model = disturbed(Net().double(), dora())
    model.add_adapter("b", LoraConfig(r=2, target_modules=LAYERS, init_lora_weights=False))
    model.base_model.set_adapter(["default", "b"])
    unmerged = run(model)
    model.merge_adapter()
    torch.testing.assert_close(run(model), unmerged, rtol=1e-10, atol=1e-10)


def test_dropout_reaches_the_direction_and_the_update_but_not_the_base() -> None:
    net = nn.Sequential(nn.Linear(6, 4)).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    base = net(x).detach()
    model = disturbed(net, dora(target_modules=["0"], lora_dropout=0.4)).train()
    layer = model.base_model.model[0]
    torch.manual_seed(8)
    found = model(x)
    torch.manual_seed(8)
    dropped = torch.nn.functional.dropout(x, 0.4)
    weight = layer.weight
    delta = layer.get_delta_weight("default")
    gain = layer.lora_magnitude_vector["default"].weight / (weight + delta).norm(dim=1)
    expected = base + (gain - 1) * (dropped @ weight.t()) + gain * (dropped @ delta.t())
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_files_go_both_ways(tmp_path: Path) -> None:
    options = {"r": 3, "use_dora": True, "target_modules": ["emb", "conv1", "lin"]}
    mine, oracle = pair(Net, LoraConfig(**options), peft.LoraConfig(**options))  # type: ignore[arg-type]
    oracle.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    mine.save_pretrained(tmp_path / "ours")
    assert torch.equal(run(PeftModel.from_pretrained(Net().double(), tmp_path / "theirs")), run(mine))
    back = peft.PeftModel.from_pretrained(Net().double(), str(tmp_path / "ours"))
    torch.testing.assert_close(run(back), run(mine), rtol=1e-10, atol=1e-10)


def test_weights_on_the_meta_device_come_to_life_from_a_file(tmp_path: Path) -> None:
    model = disturbed(Net(), dora())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Net(), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(run(loaded), run(model))


def test_a_low_memory_merge_is_refused_since_it_could_not_be_subtracted() -> None:
    with pytest.raises(AdapterError, match="low-memory"):
        get_peft_model(Net(), dora()).merge_adapter(low_memory=True)


def test_a_bias_in_b_does_not_go_with_it() -> None:
    with pytest.raises(ConfigError, match="lora_bias=True doesn't go with use_dora=True"):
        dora(lora_bias=True)


def test_half_precision_bases_run_and_merge() -> None:
    config = LoraConfig(task_type="CAUSAL_LM", use_dora=True)
    model = get_peft_model(LLAMA.build().to(torch.bfloat16), config)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    logits = model(**LLAMA.inputs()).logits
    model.merge_adapter()
    assert logits.dtype == model(**LLAMA.inputs()).logits.dtype == torch.bfloat16
