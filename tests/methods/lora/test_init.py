"""Ways of starting: the same numbers as HF PEFT, and a base that comes back to the same bits."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.methods.tiny_models import GPT2, LLAMA
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from manytune import AdapterError, ConfigError, LoraConfig, PeftModel, PeftWarning, get_peft_model

STARTS = ["orthogonal", "pissa", "pissa_niter_4", "olora"]
SHIFTING = ["pissa", "pissa_niter_4", "olora"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lin = nn.Linear(12, 10)
        self.c1 = Conv1D(9, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.c1(torch.tanh(self.lin(x)))
        return result


X = torch.randn(5, 12, generator=torch.Generator().manual_seed(2))


def config(init: str, **options: object) -> LoraConfig:
    return LoraConfig(
        **{"r": 4, "lora_alpha": 12, "target_modules": ["lin", "c1"], "init_lora_weights": init, **options}  # type: ignore[arg-type]
    )


def sketched_with_our_seed(*args: Any, **kwargs: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.svd_lowrank(*args, **kwargs)


# At a Conv1D HF PEFT's OLoRA takes the transposed weight's factors, which fit square layers only.
@pytest.mark.parametrize(
    ("init", "layer"),
    [
        (init, layer)
        for init in [*STARTS, "OLoRA", "Orthogonal"]
        for layer in ("lin", "c1")
        if (init.lower(), layer) != ("olora", "c1")
    ],
)
def test_factors_and_base_are_pefts_from_the_same_seed(
    init: str, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"target_modules": [layer], "fan_in_fan_out": layer == "c1"}
    torch.manual_seed(6)
    mine = get_peft_model(Net(), config(init, **options))
    torch.manual_seed(6)
    lowered = init.lower()
    # HF PEFT draws its sketch from the global random state; here it has the one seed.
    monkeypatch.setattr("peft.tuners.lora.layer.svd_lowrank", sketched_with_our_seed)
    oracle = peft.get_peft_model(
        Net(), peft.LoraConfig(r=4, lora_alpha=12, init_lora_weights=lowered, **options)
    )
    theirs = dict(oracle.named_parameters())
    for name, parameter in mine.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("init", STARTS)
def test_the_output_is_unchanged_at_first(init: str) -> None:
    torch.testing.assert_close(get_peft_model(Net(), config(init))(X), Net()(X), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("init", SHIFTING)
def test_a_saved_adapter_loads_the_same_whatever_was_drawn_before(init: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = get_peft_model(LLAMA.build(), LoraConfig(r=4, init_lora_weights=init, task_type="CAUSAL_LM"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    ids = torch.arange(6)[None]
    expected = model.eval()(ids).logits
    torch.manual_seed(2)
    told = (
        pytest.warns(PeftWarning, match="HF PEFT another one in each process")
        if "niter" in init
        else nullcontext()
    )
    with told:
        again = PeftModel.from_pretrained(LLAMA.build(), tmp_path).eval()
    torch.testing.assert_close(again(ids).logits, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("init", SHIFTING)
def test_the_base_loses_what_the_adapter_starts_with_and_gets_it_back(init: str) -> None:
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    model = get_peft_model(net, config(init))
    assert not torch.equal(net.lin.weight, before["lin.weight"])
    with model.disable_adapter():
        assert torch.equal(model(X), Net()(X))
        assert torch.equal(net.lin.weight, before["lin.weight"])
    shifted = net.lin.weight.detach().clone()
    model.merge_adapter()
    model.unmerge_adapter()
    assert torch.equal(net.lin.weight, shifted)
    model.unload()
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("init", SHIFTING)
def test_an_adapter_beside_it_sees_the_whole_base_and_a_warning_says_so(init: str) -> None:
    plain = {"init_lora_weights": False}
    torch.manual_seed(3)
    alone = get_peft_model(Net(), config(init, **plain))
    expected = alone(X)
    torch.manual_seed(3)
    model = get_peft_model(Net(), config(init, **plain))
    with pytest.warns(PeftWarning, match=f"Adapter 'b' starts from the base's weights.*'{init}'"):
        model.add_adapter("b", config(init))
    assert torch.equal(model(X), expected)
    model.set_adapter("b")
    torch.testing.assert_close(model(X), Net()(X), rtol=1e-5, atol=1e-6)
    model.base_model.set_adapter(["default", "b"])
    both = model(X)
    torch.testing.assert_close(both, expected, rtol=1e-4, atol=1e-5)
    model.merge_adapter()
    torch.testing.assert_close(model(X), both, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    model.set_adapter("default")
    model.delete_adapter("b")
    assert torch.equal(model(X), expected)


@pytest.mark.parametrize("init", SHIFTING)
def test_two_such_adapters_both_start_from_the_whole_weight(init: str) -> None:
    torch.manual_seed(5)
    model = get_peft_model(Net(), config(init))
    first = model(X)
    with pytest.warns(PeftWarning):
        model.add_adapter("b", config(init))
    model.set_adapter("b")
    torch.testing.assert_close(model(X), Net()(X), rtol=1e-5, atol=1e-6)
    model.set_adapter("default")
    assert torch.equal(model(X), first)
    with pytest.warns(PeftWarning, match="was active which is now deleted"):
        model.delete_adapter("default")
    torch.testing.assert_close(model(X), Net()(X), rtol=1e-5, atol=1e-6)
    model.delete_adapter("b")
    assert torch.equal(model(X), Net()(X))


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_trained_adapter_runs_the_same_once_loaded_here_and_in_peft(
    init: str, low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    model = get_peft_model(Net(), config(init, target_modules=["lin"]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Net(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(loaded(X), model(X))
    theirs = peft.PeftModel.from_pretrained(Net(), str(tmp_path))
    torch.testing.assert_close(theirs(X), model(X), rtol=1e-5, atol=1e-5)


def test_merging_is_exact_in_double_precision() -> None:
    model = get_peft_model(LLAMA.build().double().eval(), config("pissa", target_modules="all-linear"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05
    unmerged = model(**LLAMA.inputs()).logits
    plain = model.merge_and_unload()
    torch.testing.assert_close(plain(**LLAMA.inputs()).logits, unmerged, rtol=1e-10, atol=1e-10)


def test_moving_to_another_dtype_takes_the_whole_weight_along() -> None:
    model = get_peft_model(Net(), config("pissa")).double()
    with model.disable_adapter():
        assert torch.equal(model(X.double()), Net().double()(X.double()))
    assert torch.equal(model.unload()(X.double()), Net().double()(X.double()))


def test_a_deep_copy_is_a_model_of_its_own() -> None:
    model = get_peft_model(Net(), config("pissa"))
    twin = copy.deepcopy(model)
    twin.unload()
    with model.disable_adapter():
        assert torch.equal(model(X), Net()(X))


def test_an_odd_rank_cannot_be_orthogonal() -> None:
    with pytest.raises(ConfigError, match="requires the LoRA rank to be even, got 3"):
        get_peft_model(Net(), config("orthogonal", r=3))


@pytest.mark.parametrize("init", SHIFTING)
def test_a_rank_beyond_the_weights_is_refused_and_leaves_the_base_alone(init: str) -> None:
    net = Net()
    with pytest.raises(ConfigError, match=r"takes 10 directions from a weight of shape \(9, 10\)"):
        get_peft_model(net, config(init, r=10))
    assert torch.equal(net(X), Net()(X))
    assert type(net.lin) is nn.Linear


@pytest.mark.parametrize("init", ["PISSA", "pissa_niter_x", "pissa_niter_", "eva", "foo", 3])
def test_an_unknown_start_is_refused_with_the_known_ones(init: object) -> None:
    with pytest.raises(
        ConfigError, match=r"init_lora_weights=.*expected True, False, 'gaussian', 'orthogonal', 'pissa'"
    ):
        LoraConfig(init_lora_weights=init)  # type: ignore[arg-type]


def test_a_low_memory_merge_is_refused_where_the_base_was_shifted() -> None:
    with pytest.raises(AdapterError, match="low-memory"):
        get_peft_model(Net(), config("pissa")).merge_adapter(low_memory=True)


def test_embeddings_start_at_zero_whatever_is_asked_of_linear_layers() -> None:
    net = GPT2.build().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = get_peft_model(net, config("pissa", target_modules=["wpe", "c_attn"]))
    expected = GPT2.build().eval()(**GPT2.inputs()).logits
    torch.testing.assert_close(model(**GPT2.inputs()).logits, expected, rtol=1e-5, atol=1e-5)
