"""AdaLoRA against HF PEFT's, step by step."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.engine.adapters import InMemory, in_memory
from tests.methods.oracle import pair, random_tensors
from tests.methods.three_layers import Net
from tests.methods.tiny_models import BERT, FAMILIES, GPT2, LLAMA, OPT, T5, Family
from tests.reference import terms as twin
from torch import Tensor, nn

from manytune import AdaLoraConfig, ConfigError, PeftModel, PeftWarning, get_peft_model
from manytune.errors import AdapterError
from manytune.methods.adalora.allocator import RankAllocator, budget_at
from manytune.methods.registry import terms_of


class Images(nn.Module):
    """Convolutions that differ in what a convolution can be, on the same input as `Net`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 5, 3, padding=1)
        self.second = nn.Conv2d(5, 6, 2, stride=2, dilation=2, padding=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        image = 0.1 * x.view(-1, 2, 2, 2).repeat(1, 1, 3, 3)
        result: Tensor = self.second(torch.tanh(self.first(image)))
        return result


LAYERS = ["lin", "c1", "last"]
SCHEDULE: dict[str, Any] = {
    "init_r": 4,
    "target_r": 2,
    "tinit": 2,
    "tfinal": 3,
    "deltaT": 2,
    "total_step": 12,
}
NET: dict[str, Any] = {"target_modules": LAYERS, "lora_alpha": 16, **SCHEDULE}


def both(build: Any, options: dict[str, Any], *, fill: bool = True) -> tuple[PeftModel, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine, oracle = pair(build, AdaLoraConfig(**options), peft.AdaLoraConfig(**options), fill=fill)
    for name, parameter in oracle.named_parameters():
        # It trains in HF PEFT, which doesn't save it: what is saved isn't what was trained.
        if "ranknum" in name:
            parameter.requires_grad_(False)
    return mine, oracle


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def batch(step: int) -> Tensor:
    return torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def loss_of(model: nn.Module, step: int) -> Tensor:
    return (model(batch(step)) - 1).square().mean()


def train(model: Any, steps: int) -> list[tuple[Tensor, dict[str, list[bool]]]]:
    """What the ranks and the output are after each step."""
    optimizer = torch.optim.SGD(trained(model).values(), lr=0.1)
    history = []
    for step in range(steps):
        loss_of(model, step).backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        pattern = model.peft_config["default"].rank_pattern or {}
        plain = {name.removesuffix(".default"): list(kept) for name, kept in pattern.items()}
        history.append((model(batch(99)).detach(), plain))
    return history


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_loss_and_gradients_agree_with_peft_on_an_architectures_usual_modules(family: Family) -> None:
    mine, oracle = both(family.build, {**SCHEDULE, "task_type": family.task_type})
    assert trained(mine).keys() == trained(oracle).keys()
    outputs = [model(**family.inputs()) for model in (mine, oracle)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=1e-9, atol=1e-10)
    # The loss has the penalty in it.
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss, rtol=1e-9, atol=1e-10)
    for output in outputs:
        output.loss.backward()
    for name, parameter in trained(mine).items():
        expected = trained(oracle)[name].grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-8, atol=1e-9, msg=name)


@pytest.mark.parametrize("family", [LLAMA, GPT2, T5, BERT, OPT], ids=str)
def test_the_usual_modules_are_pefts(family: Family) -> None:
    options = {"total_step": 9, "task_type": family.task_type}
    mine, oracle = both(family.build, options, fill=False)
    assert trained(mine).keys() == trained(oracle).keys()


@pytest.mark.parametrize(("build", "names"), [(Net, LAYERS), (Images, ["first", "second"])])
def test_a_seed_gives_the_same_start_as_in_peft(build: type[nn.Module], names: list[str]) -> None:
    for init in (True, False):
        config = {**NET, "init_lora_weights": init, "target_modules": names}
        base = build()
        torch.manual_seed(4)
        mine = trained(get_peft_model(base, AdaLoraConfig(**config)))
        other = build()
        torch.manual_seed(4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            oracle = trained(peft.get_peft_model(other, peft.AdaLoraConfig(**config)))
        assert all(torch.equal(parameter, oracle[name]) for name, parameter in mine.items())


@pytest.mark.parametrize(
    "schedule",
    [{}, {"deltaT": 1}, {"tinit": 0, "tfinal": 0}, {"target_r": 1, "beta1": 0.5, "beta2": 0.3}],
    ids=str,
)
def test_ranks_are_shared_out_as_in_peft_at_every_step(schedule: dict[str, Any]) -> None:
    mine, oracle = both(Net, {**NET, **schedule})
    for step, (own, theirs) in enumerate(zip(train(mine, 14), train(oracle, 14), strict=True)):
        assert own[1] == theirs[1], step
        torch.testing.assert_close(own[0], theirs[0], rtol=1e-9, atol=1e-10)
    final = mine.peft_config["default"]
    assert sum(map(sum, final.rank_pattern.values())) == final.target_r * len(LAYERS)


def test_convolutions_agree_with_peft_at_every_step_and_merge() -> None:
    mine, oracle = both(Images, {**NET, "target_modules": ["first", "second"]})
    for own, theirs in zip(train(mine, 14), train(oracle, 14), strict=True):
        assert own[1] == theirs[1]
        torch.testing.assert_close(own[0], theirs[0], rtol=1e-9, atol=1e-10)
    expected = mine(batch(99)).detach()
    torch.testing.assert_close(mine.merge_and_unload()(batch(99)), expected, rtol=1e-10, atol=1e-10)


def test_a_convolution_that_keeps_nothing_is_the_bases() -> None:
    pattern = {"first.lora_E": [False] * 4}
    options = {**NET, "target_modules": ["first", "second"], "rank_pattern": pattern}
    model = get_peft_model(Images().double(), AdaLoraConfig(**options))
    assert model.base_model.model.first.r["default"] == 0
    torch.testing.assert_close(model(batch(1)), Images().double()(batch(1)), rtol=1e-12, atol=1e-12)


def test_a_convolution_with_groups_is_refused() -> None:
    with pytest.raises(ConfigError, match="reaches across the groups"):
        get_peft_model(
            nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), AdaLoraConfig(target_modules=["0"], total_step=3)
        )


def test_nothing_is_cut_when_the_target_is_the_initial_rank() -> None:
    model = get_peft_model(Net().double(), AdaLoraConfig(**{**NET, "target_r": 4}))
    train(model, 14)
    assert all(all(kept) for kept in model.peft_config["default"].rank_pattern.values())


def test_files_hold_what_is_left_and_go_both_ways(tmp_path: Path) -> None:
    mine, oracle = both(Net, NET)
    expected = train(mine, 14)[-1][0]
    train(oracle, 14)
    mine.save_pretrained(tmp_path / "ours")
    oracle.save_pretrained(str(tmp_path / "theirs"))
    files = [load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs")]
    assert {k: v.shape for k, v in files[0].items()} == {k: v.shape for k, v in files[1].items()}
    configs = [json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs")]
    for config in configs:
        config["target_modules"].sort()
        # One word for layers stored both ways: HF PEFT's is that of the last layer it came to.
        del config["fan_in_fan_out"]
    assert configs[0] == configs[1]
    assert any(sum(kept) < 4 for kept in configs[0]["rank_pattern"].values())
    for trainable in (False, True):
        loaded = PeftModel.from_pretrained(Net().double(), tmp_path / "theirs", is_trainable=trainable)
        torch.testing.assert_close(loaded(batch(99)), expected, rtol=1e-9, atol=1e-10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        back = peft.PeftModel.from_pretrained(Net().double(), str(tmp_path / "ours"))
    torch.testing.assert_close(back(batch(99)), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_an_adapter_whose_ranks_were_cut_loads_beside_another(
    tmp_path: Path, low_cpu_mem_usage: bool
) -> None:
    model = get_peft_model(Net().double(), AdaLoraConfig(**NET))
    expected = train(model, 14)[-1][0]
    model.save_pretrained(tmp_path)
    other = get_peft_model(Net().double(), AdaLoraConfig(target_modules=["lin"], total_step=5))
    other.load_adapter(tmp_path, "cut", low_cpu_mem_usage=low_cpu_mem_usage)
    other.set_adapter("cut")
    torch.testing.assert_close(other(batch(99)), expected, rtol=1e-12, atol=1e-12)


def test_a_layer_that_keeps_nothing_is_the_bases(tmp_path: Path) -> None:
    model = get_peft_model(Net().double(), AdaLoraConfig(**{**NET, "target_r": 1, "deltaT": 1}))
    with torch.no_grad():
        # Importance counts products with w: nothing here can matter.
        for parameter in model.base_model.model.last.tensors("default").values():
            parameter.zero_()
    train(model, 14)
    assert sum(model.peft_config["default"].rank_pattern["last.lora_E"]) == 0
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Net().double(), tmp_path, is_trainable=True)
    assert loaded.base_model.model.last.r["default"] == 0
    torch.testing.assert_close(loaded(batch(99)), model(batch(99)), rtol=1e-12, atol=1e-12)
    (loaded(batch(1)).sum() + loaded.base_model.orthogonality_penalty()).backward()
    assert all(torch.isfinite(p.grad).all() for p in trained(loaded).values() if p.grad is not None)


def test_merging_after_the_ranks_were_cut_is_exact() -> None:
    model = get_peft_model(Net().double(), AdaLoraConfig(**NET))
    expected = train(model, 14)[-1][0]
    torch.testing.assert_close(model.merge_and_unload()(batch(99)), expected, rtol=1e-10, atol=1e-10)


def test_the_budget_falls_along_a_cubic_curve() -> None:
    config = AdaLoraConfig(init_r=8, target_r=2, tinit=10, tfinal=20, total_step=100)
    # b1 + (b0 - b1)(1 - t)^3 for ten layers: 20 + 60 (1 - t)^3.
    assert [budget_at(config, step, layers=10) for step in (0, 10, 45, 80, 99)] == [80, 80, 27, 20, 20]


def test_importance_is_that_of_the_papers_triplets() -> None:
    config = AdaLoraConfig(init_r=1, target_r=1, beta1=0.5, beta2=0.5, total_step=5)
    values = {"lora_A": [[1.0, -3.0]], "lora_E": [[2.0]], "lora_B": [[4.0], [0.0]]}
    triplets = {name: nn.Parameter(torch.tensor(value)) for name, value in values.items()}
    for parameter in triplets.values():
        parameter.grad = torch.ones_like(parameter)
    allocator = RankAllocator(config)
    allocator.observe({"x": triplets})
    # After one step: average w/2, deviation (w - w/2)/2, so importance is w²/8; A's and B's are averaged.
    assert float(allocator.scores("x")) == pytest.approx(4 / 8 + (1 / 8 + 9 / 8) / 2 + (16 / 8 + 0) / 2)


def test_a_training_of_one_step_cuts_the_ranks_by_that_steps_gradients(tmp_path: Path) -> None:
    """HF PEFT fails there with a KeyError."""
    config = AdaLoraConfig(target_modules=["lin"], init_r=4, target_r=1, total_step=1)
    model = get_peft_model(Net().double(), config)
    loss_of(model, 0).backward()
    torch.optim.SGD(trained(model).values(), lr=0.1).step()
    model.base_model.update_and_allocate(1)
    ((key, kept),) = model.peft_config["default"].rank_pattern.items()
    assert key.startswith("lin.") and sum(kept) == 1
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Net().double(), tmp_path)
    torch.testing.assert_close(loaded(batch(1)), model.eval()(batch(1)))


def test_no_penalty_is_added_to_the_base_or_to_a_frozen_adapters_loss(tmp_path: Path) -> None:
    plain = float(LLAMA.build()(**LLAMA.inputs()).loss.detach())
    model = get_peft_model(LLAMA.build(), AdaLoraConfig(task_type="CAUSAL_LM", total_step=5))
    assert float(model(**LLAMA.inputs()).loss.detach()) > plain + 0.1
    with model.disable_adapter():
        assert float(model(**LLAMA.inputs()).loss) == plain
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(LLAMA.build(), tmp_path)
    assert float(loaded(**LLAMA.inputs()).loss) == pytest.approx(plain)


def test_allocation_without_gradients_or_without_a_trained_adapter_is_refused() -> None:
    model = get_peft_model(Net(), AdaLoraConfig(**NET))
    with pytest.raises(AdapterError, match="before zero_grad"):
        model.base_model.update_and_allocate(0)
    model.set_adapter("default", inference_mode=True)
    with pytest.raises(AdapterError, match="no adapter trains"):
        model.base_model.update_and_allocate(0)


def test_loading_tensors_of_the_cut_size_shrinks_the_layers() -> None:
    model = get_peft_model(Net().double(), AdaLoraConfig(**NET))
    expected = train(model, 14)[-1][0]
    from manytune.methods.checkpoint.format import get_state, set_state

    state = get_state(model.tuner, "default")
    assert set_state(model.tuner, "default", {k: v.clone() for k, v in state.items()}).missing_keys == []
    assert sum(layer.r["default"] for layer in model.base_model._layers.values()) == 2 * len(LAYERS)
    torch.testing.assert_close(model(batch(99)), expected, rtol=1e-12, atol=1e-12)
    assert random_tensors(state).keys() == get_state(model.tuner, "default").keys()


def test_other_layers_than_linear_ones_are_named() -> None:
    with pytest.raises(ConfigError, match=r"Target module 0 \(Embedding\) is not supported"):
        get_peft_model(nn.Sequential(nn.Embedding(4, 2)), AdaLoraConfig(target_modules=["0"], total_step=3))


def test_a_rank_is_said_to_be_unused() -> None:
    with pytest.warns(PeftWarning, match="use `init_r` instead"):
        AdaLoraConfig(r=4, total_step=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_step": None}, "does not work when `total_step` is None"),
        ({"total_step": 0}, "does not work when `total_step` is None"),
        ({"tinit": 4, "tfinal": 6}, "don't allow for a budgeting phase"),
        ({"tinit": -1}, "neither can be negative"),
        ({"orth_reg_weight": -0.1}, "`orth_reg_weight` should be greater"),
        ({"target_r": 20}, "target_r=20 is above init_r=12"),
        ({"init_r": 0}, "`init_r` should be a positive integer"),
        ({"deltaT": 0}, "`deltaT` should be a positive integer"),
        ({"beta1": 1.0}, "`beta1` lies between 0 and 1"),
        ({"use_dora": True}, "use_dora=True.*does not support"),
        ({"use_rslora": True}, "use_rslora=True.*does not support"),
        ({"alpha_pattern": {"q": 2}}, "alpha_pattern=.*does not support"),
        ({"init_lora_weights": "pissa"}, "starts in one way only"),
        ({"loftq_config": {"loftq_bits": 4}}, r"AdaLoraConfig\(loftq_config.*doesn't implement"),
        ({"rank_pattern": {"lin.lora_E": [True]}}, "expected a list of init_r=12 booleans"),
    ],
)
def test_an_unusable_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdaLoraConfig(**{"total_step": 10, **options})


# -- terms


def test_terms_leave_out_the_triplets_that_were_cut_and_layers_that_lost_all() -> None:
    model, _ = both(LLAMA.build, {"init_r": 4, "target_r": 2, "total_step": 12, "target_modules": ["q_proj"]})
    model.eval()
    layers = [model.get_submodule(f"base_model.model.model.layers.{n}.self_attn.q_proj") for n in range(2)]
    with torch.no_grad():
        layers[0].lora_E["default"][[0, 3]] = 0.0
        layers[1].lora_E["default"].zero_()
        expected = model(**LLAMA.inputs()).logits
    live = model.tuner.live_terms("default")
    assert {path: update.rank for path, update in live.updates.items()} == {
        "model.layers.0.self_attn.q_proj": 2
    }
    saved = terms_of(in_memory(model), LLAMA.build())
    for terms in (live, saved):
        found = twin.logits(LLAMA.build().double().eval(), terms, LLAMA.inputs())
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_terms_of_a_file_with_cut_ranks_have_these_ranks() -> None:
    config = AdaLoraConfig(
        init_r=4,
        target_r=2,
        total_step=9,
        lora_alpha=3,
        target_modules=["lin"],
        rank_pattern={"lin.lora_E": [True] * 2 + [False] * 2},
    )
    tensors = {"lora_A": torch.ones(2, 8), "lora_E": torch.tensor([[2.0], [3.0]]), "lora_B": torch.ones(6, 2)}
    named = {f"base_model.model.lin.{name}": tensor for name, tensor in tensors.items()}
    update = terms_of(InMemory("x", config, named), Net()).updates["lin"]
    assert update.down is not None
    assert torch.equal(update.down, torch.tensor([[2.0], [3.0]]).expand(2, 8))
    assert update.scaling == pytest.approx(3 / (4 + 1e-5), rel=1e-12)
    short = {**named, "base_model.model.lin.lora_B": torch.ones(6, 3)}
    with pytest.raises(ConfigError, match=r"lin: lora_B has shape \(6, 3\), expected \(6, 2\)"):
        terms_of(InMemory("x", config, short), Net())


def test_convolutions_have_no_terms() -> None:
    model = get_peft_model(Images(), AdaLoraConfig(**{**NET, "target_modules": ["first"]}))
    with pytest.raises(ConfigError, match=r"'first' \(Conv2d\); what it does there has no terms"):
        model.tuner.live_terms("default")
