"""VeRA against HF PEFT's."""

from __future__ import annotations

import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors import safe_open
from tests.engine.adapters import InMemory, in_memory
from tests.methods.oracle import assert_same, pair
from tests.methods.three_layers import Net
from tests.methods.tiny_models import FAMILIES, LLAMA, Family
from tests.reference import terms as twin
from torch import Tensor, nn

from manytune import ConfigError, PeftModel, VeraConfig, get_peft_model
from manytune.methods.registry import terms_of

X = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LAYERS = ["lin", "c1", "last"]


def disturb(*models: nn.Module) -> None:
    """The same values for the trained vectors of each model."""
    for model in models:
        generator = torch.Generator().manual_seed(2)
        for _, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape, generator=generator).double()


def run(model: nn.Module) -> Tensor:
    result: Tensor = model(X)
    return result


def test_every_kind_of_layer_agrees_with_peft() -> None:
    options = {"r": 5, "target_modules": LAYERS, "projection_prng_key": 7}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine, oracle = pair(Net, VeraConfig(**options), peft.VeraConfig(**options), fill=False)  # type: ignore[arg-type]
    disturb(mine, oracle)
    assert_same(mine, oracle, run)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_the_usual_modules_of_an_architecture_agree_with_peft(family: Family) -> None:
    options = {"r": 5, "task_type": family.task_type}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine, oracle = pair(family.build, VeraConfig(**options), peft.VeraConfig(**options), fill=False)  # type: ignore[arg-type]
    disturb(mine, oracle)
    assert_same(mine.eval(), oracle.eval(), lambda model: model(**family.inputs()).logits)


@pytest.mark.parametrize("save_projection", [True, False])
def test_files_go_both_ways_with_and_without_the_projections(tmp_path: Path, save_projection: bool) -> None:
    options = {"r": 5, "target_modules": ["lin", "last"], "save_projection": save_projection}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine, oracle = pair(Net, VeraConfig(**options), peft.VeraConfig(**options), fill=False)  # type: ignore[arg-type]
        disturb(mine, oracle)
        oracle.save_pretrained(tmp_path / "theirs")
        mine.save_pretrained(tmp_path / "ours")
        back = peft.PeftModel.from_pretrained(Net().double(), str(tmp_path / "ours"))
    loaded = PeftModel.from_pretrained(Net().double(), tmp_path / "theirs")
    torch.testing.assert_close(run(loaded), run(mine), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(run(back), run(mine), rtol=1e-10, atol=1e-10)
    with safe_open(tmp_path / "ours" / "adapter_model.safetensors", "pt") as file:
        assert ("base_model.vera_A" in file.keys()) is save_projection  # noqa: SIM118


def test_projections_from_a_file_win_over_the_seed(tmp_path: Path) -> None:
    model = get_peft_model(Net().double(), VeraConfig(r=5, target_modules=LAYERS))
    disturb(model)
    pairs = model.base_model.vera_projections["default"]
    pairs.vera_A.mul_(2)
    model.save_pretrained(tmp_path)
    assert torch.equal(run(PeftModel.from_pretrained(Net().double(), tmp_path)), run(model))


def test_all_layers_share_one_pair_of_matrices_that_does_not_train() -> None:
    model = get_peft_model(LLAMA.build(), VeraConfig(r=8, target_modules="all-linear"))
    pairs = {
        id(m.projections["default"]) for m in model.modules() if hasattr(m, "projections") and m.projections
    }
    assert len(pairs) == 1
    assert all("vera_lambda" in n for n, p in model.named_parameters() if p.requires_grad)


def test_adapters_may_have_other_ranks_and_seeds() -> None:
    model = get_peft_model(Net().double(), VeraConfig(r=5, target_modules=LAYERS))
    model.add_adapter("b", VeraConfig(r=7, target_modules=["lin"], projection_prng_key=3, init_weights=False))
    outputs = []
    for names in (["default"], ["b"], ["default", "b"]):
        model.base_model.set_adapter(names)
        outputs.append(run(model))
    torch.testing.assert_close(outputs[2], outputs[1], rtol=1e-12, atol=1e-12)
    model.delete_adapter("b")
    assert list(model.base_model.vera_projections) == ["default"]


def test_a_refused_adapter_leaves_nothing() -> None:
    model = get_peft_model(Net(), VeraConfig(r=5, target_modules=["lin"]))
    with pytest.raises(ConfigError):
        model.add_adapter("b", VeraConfig(r=5, target_modules=["lin"], modules_to_save=["lin"]))
    assert list(model.base_model.vera_projections) == ["default"]


def test_a_layer_that_is_not_linear_is_named() -> None:
    with pytest.raises(ConfigError, match=r"Target module 0 \(Conv2d\) is not supported"):
        get_peft_model(nn.Sequential(nn.Conv2d(2, 2, 1)), VeraConfig(target_modules=["0"]))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"bias": "all"}, "bias='all'.*doesn't implement"),
        ({"r": 0}, "`r` should be a positive integer value"),
        ({"vera_dropout": 1.0}, "`vera_dropout` is a probability below 1"),
        ({"layers_pattern": "h"}, "`layers_to_transform` must also be specified"),
    ],
)
def test_an_unusable_option_is_named(option: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VeraConfig(**option)  # type: ignore[arg-type]


# -- terms


@pytest.mark.parametrize("save_projection", [True, False])
def test_terms_are_the_layers_slices_of_the_projections_in_the_file_or_from_the_seed(
    save_projection: bool,
) -> None:
    config = VeraConfig(r=5, target_modules=LAYERS, projection_prng_key=7, save_projection=save_projection)
    model = get_peft_model(Net().double(), config)
    disturb(model)
    adapter = in_memory(model)
    assert ("base_model.vera_A" in adapter.tensors) is save_projection
    terms = terms_of(adapter, Net())
    plain = Net().double()
    with twin.in_layers(plain, terms):
        torch.testing.assert_close(run(plain), run(model), rtol=1e-12, atol=1e-12)
    live = model.tuner.live_terms("default")
    for path, update in terms.updates.items():
        assert torch.equal(update.up, live.updates[path].up)


def test_terms_of_all_layers_share_one_a() -> None:
    model = get_peft_model(Net(), VeraConfig(r=5, target_modules=LAYERS))
    start = model.tuner.vera_projections["default"].vera_A.data_ptr()
    updates = model.tuner.live_terms("default").updates.values()
    assert [update.down.data_ptr() for update in updates if update.down is not None] == [start] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vera_A": torch.zeros(5, 9)}, r"all layers share: vera_A has shape \(5, 9\), expected \(5, 10\)"),
        ({"vera_B": None}, r"expected vera_A and vera_B in the file, or neither; vera_B is missing"),
        (
            {"model.lin.vera_lambda_d": torch.zeros(4)},
            r"lin: vera_lambda_d has shape \(4,\), expected \(5,\)",
        ),
        ({"model.lin.vera_lambda_b": None}, r"lin: expected vera_lambda_b and vera_lambda_d"),
    ],
)
def test_tensors_that_do_not_fit_have_no_terms(changes: dict[str, Tensor | None], message: str) -> None:
    adapter = in_memory(get_peft_model(Net(), VeraConfig(r=5, target_modules=LAYERS)))
    new = {f"base_model.{name}": tensor for name, tensor in changes.items()}
    tensors = {name: t for name, t in {**adapter.tensors, **new}.items() if t is not None}
    with pytest.raises(ConfigError, match=message):
        terms_of(InMemory("x", adapter.config, tensors), Net())
