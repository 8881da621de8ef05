"""IA3 against HF PEFT's, and its own errors."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from tests.methods.oracle import assert_same, pair
from tests.methods.tiny_models import BERT, FAMILIES, LLAMA, Family
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import manytune
from manytune import ConfigError, IA3Config, NoMatchingPeftModuleError, PeftModel, get_peft_model


class Net(nn.Module):
    """One layer of every kind that IA3 knows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c3 = nn.Conv3d(2, 4, 2)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2, padding=1)
        self.lin = nn.Linear(32, 6)
        self.c1 = Conv1D(5, 6)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c3(x).flatten(1, 2)  # (batch, 4 * 2, 2, 2)
        y = torch.tanh(self.grouped(y)).flatten(1)
        result: Tensor = self.head(torch.tanh(self.c1(torch.tanh(self.lin(y)))))
        return result


def run(model: nn.Module) -> Tensor:
    x = torch.randn(3, 2, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result: Tensor = model(x)
    return result


ALL = ["c3", "grouped", "lin", "c1", "head"]


@pytest.mark.parametrize("feedforward", [[], ALL, ["grouped", "c1"], ["c3", "lin"]])
def test_every_kind_of_layer_agrees_with_peft(feedforward: list[str]) -> None:
    options = {"target_modules": ALL, "feedforward_modules": feedforward}
    mine, oracle = pair(Net, IA3Config(**options), peft.IA3Config(**options))
    assert_same(mine, oracle, run)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_the_usual_modules_of_an_architecture_agree_with_peft(family: Family) -> None:
    mine, oracle = pair(
        family.build, IA3Config(task_type=family.task_type), peft.IA3Config(task_type=family.task_type)
    )
    for model in (mine, oracle):
        model.eval()
    assert_same(mine, oracle, lambda model: model(**family.inputs()).logits)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_all_linear_layers_are_those_of_peft(family: Family) -> None:
    options = {"target_modules": "all-linear", "feedforward_modules": [], "task_type": family.task_type}
    # Holds that the files of both have the same names and shapes.
    pair(family.build, IA3Config(**options), peft.IA3Config(**options))


def test_the_usual_modules_are_written_into_the_config() -> None:
    config = IA3Config()
    get_peft_model(LLAMA.build(), config)
    assert config.target_modules == {"k_proj", "v_proj", "down_proj"}
    assert config.feedforward_modules == {"down_proj"}


@pytest.mark.parametrize("feedforward", [[], ALL, ["grouped", "c1"]])
def test_merging_is_exact_for_every_kind_of_layer(feedforward: list[str]) -> None:
    config = IA3Config(target_modules=ALL, feedforward_modules=feedforward)
    net = Net().double()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    model = get_peft_model(net, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.uniform_(0.2, 1.8)
    unmerged = run(model)
    model.merge_adapter()
    torch.testing.assert_close(run(model), unmerged, rtol=1e-10, atol=1e-10)
    model.unload()
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())


def test_several_active_adapters_multiply() -> None:
    model = get_peft_model(Net().double(), IA3Config(target_modules=["head"], feedforward_modules=[]))
    model.add_adapter("b", IA3Config(target_modules=["head"], feedforward_modules=[]))
    layer = model.base_model.model.head
    layer.ia3_l["default"].data.fill_(2.0)
    layer.ia3_l["b"].data.fill_(3.0)
    with model.disable_adapter():
        base = run(model)
    model.base_model.set_adapter(["default", "b"])
    torch.testing.assert_close(run(model), 6 * base)
    model.merge_adapter()
    torch.testing.assert_close(run(model), 6 * base)


def test_random_factors_are_for_tests_and_change_the_output() -> None:
    options = {"target_modules": ["head"], "feedforward_modules": []}
    model = get_peft_model(Net().double(), IA3Config(**options, init_ia3_weights=False))
    assert not torch.allclose(run(model), run(Net().double()))


def test_half_precision_bases_keep_the_factors_in_single_precision() -> None:
    model = get_peft_model(BERT.build().to(torch.bfloat16), IA3Config(task_type="SEQ_CLS"))
    assert {p.dtype for n, p in model.named_parameters() if "ia3_l" in n} == {torch.float32}
    assert model(**BERT.inputs()).logits.dtype == torch.bfloat16
    model.merge_adapter()
    assert model(**BERT.inputs()).logits.dtype == torch.bfloat16


def test_files_of_peft_load_and_files_load_in_peft(tmp_path: object) -> None:
    options = {"target_modules": ALL, "feedforward_modules": ["lin"]}
    mine, oracle = pair(Net, IA3Config(**options), peft.IA3Config(**options))
    oracle.save_pretrained(f"{tmp_path}/theirs")
    mine.save_pretrained(f"{tmp_path}/ours")
    assert torch.equal(run(PeftModel.from_pretrained(Net().double(), f"{tmp_path}/theirs")), run(mine))
    with warnings.catch_warnings():
        # HF PEFT's one fan_in_fan_out can't suit Linear and Conv1D at once, and it says so at each layer.
        warnings.simplefilter("ignore")
        back = peft.PeftModel.from_pretrained(Net().double(), f"{tmp_path}/ours")
    torch.testing.assert_close(run(back), run(mine), rtol=1e-10, atol=1e-10)


def test_feedforward_modules_outside_the_targets_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"subset of `target_modules`.*\['head'\]"):
        IA3Config(target_modules=["lin"], feedforward_modules=["head"])


def test_a_feedforward_pattern_that_names_no_target_is_refused() -> None:
    with pytest.raises(
        NoMatchingPeftModuleError, match=r"'down.*' names none of the targeted modules.*: lin\."
    ):
        get_peft_model(Net(), IA3Config(target_modules="lin", feedforward_modules="down.*"))


def test_a_module_that_cannot_be_scaled_is_named() -> None:
    net = nn.Sequential(nn.Embedding(4, 4))
    with pytest.raises(ConfigError, match=r"Target module 0 \(Embedding\) is not supported"):
        get_peft_model(net, IA3Config(target_modules=["0"], feedforward_modules=[]))


def test_an_unknown_architecture_asks_for_target_modules() -> None:
    with pytest.raises(ConfigError, match="Please specify `target_modules`"):
        get_peft_model(Net(), IA3Config())


def test_adapters_that_disagree_about_a_feedforward_module_are_refused_whole() -> None:
    model = get_peft_model(Net(), IA3Config(target_modules=["lin", "head"], feedforward_modules=[]))
    with pytest.raises(ConfigError, match="head is not a feed-forward module"):
        model.add_adapter("b", IA3Config(target_modules=["lin", "head"], feedforward_modules=["head"]))
    assert list(model.peft_config) == ["default"]
    assert "b" not in model.base_model.model.lin.ia3_l


def test_there_is_no_low_memory_merge_since_it_multiplies() -> None:
    model = get_peft_model(Net(), IA3Config(target_modules=["lin"], feedforward_modules=[]))
    with pytest.raises(manytune.AdapterError, match="low-memory"):
        model.merge_adapter(low_memory=True)
