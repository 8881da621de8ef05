"""Mixtures of experts: what `all-linear` and the experts' former names mean, and files from before the grouping."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file
from tests.methods.tiny_models import LLAMA
from tests.methods.tiny_moe import DEEPSEEK, GPT_OSS, MIXTRAL, MIXTURES, QWEN3, Mixture, logits
from torch import Tensor, nn

import manytune
from manytune import (
    ConfigError,
    IA3Config,
    LoraConfig,
    NoMatchingPeftModuleError,
    PeftModel,
    PeftWarning,
    VeraConfig,
)
from manytune.methods.lora.parameters import ParamWrapper

UNGROUPED = [mixture for mixture in MIXTURES if mixture.former]


def quietly(library: Any, base: nn.Module, config: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return library.get_peft_model(base, config)


def adapted(model: nn.Module) -> set[str]:
    """The parameters whose updates train, by the names of the base."""
    found = set()
    for path, module in model.get_base_model().named_modules():  # type: ignore[operator]
        if isinstance(module, ParamWrapper):
            found.add(f"{path.replace('.base_layer', '')}.{module.parameter_name}")
        elif hasattr(module, "lora_A") and len(module.lora_A):
            found.add(f"{path}.weight")
    return found


def linear_weights(mixture: Mixture) -> set[str]:
    """Every matrix that multiplies hidden states, other than the embedding's, the head's and the router's."""
    return {
        name
        for name, parameter in mixture.build().named_parameters()
        if parameter.dim() > 1
        and "bias" not in name
        and not any(part in name for part in ("embed", "lm_head", mixture.router))
    }


# -- all-linear


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
def test_all_linear_adapts_experts_and_names_what_it_leaves_frozen(mixture: Mixture) -> None:
    config = LoraConfig(r=2, target_modules="all-linear")
    with pytest.warns(
        PeftWarning, match=rf"leaves \d weights frozen .* {mixture.router}\. To adapt them.*target_param"
    ):
        model = manytune.get_peft_model(mixture.build(), config)
    assert adapted(model) == linear_weights(mixture)
    assert set(config.target_parameters or ()) == {"gate_up_proj", "down_proj"}
    assert config.rank_pattern == {r".*\.gate_up_proj": 4} and config.alpha_pattern == {
        r".*\.gate_up_proj": 16
    }
    ranks = {
        m.parameter_name: (m.r["default"], m.scaling["default"])
        for m in model.modules()
        if isinstance(m, ParamWrapper)
    }
    assert ranks == {"gate_up_proj": (4, 4.0), "down_proj": (2, 4.0)}


@pytest.mark.parametrize("mixture", [MIXTRAL, QWEN3], ids=str)
def test_all_linear_with_the_router_is_what_peft_makes_of_it(mixture: Mixture, tmp_path: Path) -> None:
    config = LoraConfig(
        r=2, target_modules="all-linear", target_parameters=[mixture.router], init_lora_weights=False
    )
    torch.manual_seed(3)
    mine = manytune.get_peft_model(mixture.build(), config)
    torch.manual_seed(3)
    theirs = quietly(
        peft, mixture.build(), peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
    trained = ({n: p for n, p in model.named_parameters() if p.requires_grad} for model in (mine, theirs))
    torch.testing.assert_close(*trained, rtol=0, atol=0)
    torch.testing.assert_close(logits(mine), logits(theirs), rtol=1e-5, atol=1e-5)
    options = theirs.peft_config["default"]
    assert (
        config.target_modules,
        set(config.target_parameters or ()),
        config.rank_pattern,
        config.alpha_pattern,
    ) == (*(options.target_modules, options.target_parameters, options.rank_pattern, options.alpha_pattern),)
    mine.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(mixture.build(), tmp_path)
    assert torch.equal(logits(back), logits(mine))


def test_peft_reads_what_all_linear_saved(tmp_path: Path) -> None:
    mine = quietly(
        manytune, QWEN3.build(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
    mine.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(QWEN3.build(), str(tmp_path))
    torch.testing.assert_close(logits(theirs), logits(mine), rtol=1e-5, atol=1e-5)


def test_layers_and_exclusions_narrow_experts_down_too() -> None:
    for options, expected in (
        ({"layers_to_transform": [1]}, {name for name in linear_weights(QWEN3) if "layers.1." in name}),
        (
            {"exclude_modules": r".*layers\.0\..*"},
            {name for name in linear_weights(QWEN3) if "layers.1." in name},
        ),
        (
            {"exclude_modules": ["experts"]},
            {name for name in linear_weights(QWEN3) if "experts" not in name},
        ),
    ):
        config = LoraConfig(r=2, target_modules="all-linear", **options)  # type: ignore[arg-type]
        assert adapted(quietly(manytune, QWEN3.build(), config)) == expected


def test_all_linear_with_dropout_trains_experts_too() -> None:
    """HF PEFT refuses it, so its users turn dropout off or leave experts out."""
    config = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.05)
    assert adapted(quietly(manytune, QWEN3.build(), config)) == linear_weights(QWEN3)


@pytest.mark.parametrize(
    "config",
    [VeraConfig(r=2, target_modules="all-linear"), IA3Config(target_modules="all-linear")],
    ids=["vera", "ia3"],
)
def test_other_methods_say_that_experts_stay_frozen(config: Any) -> None:
    with pytest.warns(
        PeftWarning,
        match=r"leaves 6 weights frozen \(\d\d\.\d% of the model\).*experts\.down_proj, experts\.gate_up_proj, "
        r"gate\.weight\. This method adapts linear layers; LoRA can adapt others",
    ):
        manytune.get_peft_model(MIXTRAL.build(), config)


def test_ia3s_usual_modules_that_were_grouped_are_missed_aloud() -> None:
    with pytest.warns(
        PeftWarning, match=r"IA3 scales the inputs of w2 in models of this type, and this one has none"
    ):
        manytune.get_peft_model(MIXTRAL.build(), IA3Config())


def test_other_matrices_that_no_linear_layer_holds_are_named() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)
            self.mix = nn.Module()
            self.mix.w = nn.Parameter(torch.zeros(4, 4))
            self.mix.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
            self.emb, self.norm, self.conv = nn.Embedding(9, 4), nn.LayerNorm(4), nn.Conv1d(4, 4, 1)

    with pytest.warns(PeftWarning, match=r"leaves 1 weights frozen .*holds: mix\.w\. To adapt them"):
        manytune.get_peft_model(Plain(), LoraConfig(target_modules="all-linear"))
    config = LoraConfig(target_modules="all-linear", target_parameters=["mix.w"])
    assert adapted(manytune.get_peft_model(Plain(), config)) == {"lin.weight", "mix.w"}


# -- former names


@pytest.mark.parametrize("mixture", [MIXTRAL, QWEN3], ids=str)
@pytest.mark.parametrize("form", ["list", "expression"])
def test_the_experts_former_names_mean_what_they_mean_in_peft(mixture: Mixture, form: str) -> None:
    names = ["q_proj", *mixture.former]
    targets: Any = names if form == "list" else rf".*\.({'|'.join(names)})"
    mine = manytune.get_peft_model(mixture.build(), LoraConfig(r=2, target_modules=targets))
    theirs = quietly(peft, mixture.build(), peft.LoraConfig(r=2, target_modules=targets))
    assert {n: p.shape for n, p in mine.named_parameters()} == {
        n: p.shape for n, p in theirs.named_parameters()
    }
    assert mine.peft_config["default"].target_modules == {"q_proj"}  # type: ignore[attr-defined]


def test_a_router_is_adapted_if_it_is_named_in_either_option() -> None:
    for options in (
        {"target_modules": ["q_proj", "gate"]},
        {"target_modules": ["q_proj"], "target_parameters": ["gate.weight"]},
        {"target_modules": r".*\.(q_proj|gate)"},
    ):
        model = manytune.get_peft_model(QWEN3.build(), LoraConfig(r=2, **options))  # type: ignore[arg-type]
        assert {name.split(".", 3)[3] for name in adapted(model)} == {
            "self_attn.q_proj.weight",
            "mlp.gate.weight",
        }


def test_shared_experts_and_dense_layers_of_the_same_names_are_adapted_as_well() -> None:
    """In HF PEFT 0.21 these names then mean the grouped experts alone, and the linear layers stay frozen."""
    names = list(DEEPSEEK.former)
    model = manytune.get_peft_model(DEEPSEEK.build(), LoraConfig(r=2, target_modules=names))
    assert adapted(model) == {name for name in linear_weights(DEEPSEEK) if ".mlp." in name}
    shared = manytune.get_peft_model(
        DEEPSEEK.build(), LoraConfig(r=2, target_modules=[f"shared_experts.{name}" for name in names])
    )
    assert all("shared_experts" in name for name in adapted(shared))


@pytest.mark.parametrize("mixture", UNGROUPED, ids=str)
def test_a_part_of_what_is_one_parameter_is_refused(mixture: Mixture) -> None:
    with pytest.raises(
        ConfigError, match=r"names a part of \S+gate_up_proj, which holds \w+ and \w+ of \d experts"
    ):
        manytune.get_peft_model(mixture.build(), LoraConfig(target_modules=["o_proj", mixture.former[0]]))
    with pytest.raises(ConfigError, match="as a whole"):
        manytune.get_peft_model(mixture.build(), LoraConfig(target_modules=r".*experts\.0\..*"))


def test_names_that_never_were_an_experts_are_not_found() -> None:
    for build in (GPT_OSS.build, QWEN3.build, LLAMA.build):
        with pytest.raises(NoMatchingPeftModuleError, match=r"Target modules \['w1'\] not found"):
            manytune.get_peft_model(build(), LoraConfig(target_modules=["q_proj", "w1"]))


def test_a_users_own_rank_stays() -> None:
    config = LoraConfig(r=2, target_modules="all-linear", rank_pattern={"experts.gate_up_proj": 3})
    model = quietly(manytune, QWEN3.build(), config)
    assert {
        m.r["default"] for m in model.modules() if getattr(m, "parameter_name", "") == "gate_up_proj"
    } == {3}
    again = LoraConfig(r=2, target_modules="all-linear")
    second = quietly(manytune, QWEN3.build(), again)
    second.add_adapter("b", again)
    assert again.rank_pattern == {r".*\.gate_up_proj": 4}


# -- checkpoints with a pair of factors for each expert


def by_expert(mixture: Mixture, directory: Path, *, router: bool = False) -> dict[str, Tensor]:
    """An adapter as it was saved when experts had linear layers."""
    block = "block_sparse_moe" if mixture is MIXTRAL else "mlp"
    generator, tensors = torch.Generator().manual_seed(3), {}
    base: Any = mixture.build()

    def add(path: str, out: int, inputs: int) -> None:
        for side, shape in (("A", (2, inputs)), ("B", (out, 2))):
            key = f"base_model.model.{path}.lora_{side}.weight"
            tensors[key] = 0.3 * torch.randn(shape, generator=generator)

    for layer in range(2):
        for expert in range(4):
            for name in mixture.former:
                add(
                    f"model.layers.{layer}.{block}.experts.{expert}.{name}",
                    *((16, 24) if name in ("w2", "down_proj") else (24, 16)),
                )
        add(f"model.layers.{layer}.self_attn.o_proj", *base.model.layers[layer].self_attn.o_proj.weight.shape)
        if router:
            add(f"model.layers.{layer}.{block}.gate", 4, 16)
    save_file(tensors, directory / "adapter_model.safetensors")
    targets = ["o_proj", *mixture.former, *(["gate"] if router else [])]
    config = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM", inference_mode=True
    )
    config.save_pretrained(directory)
    return tensors


@pytest.mark.parametrize("mixture", [MIXTRAL, QWEN3], ids=str)
@pytest.mark.parametrize("router", [False, True], ids=["", "router"])
def test_an_adapter_from_before_the_grouping_loads(mixture: Mixture, router: bool, tmp_path: Path) -> None:
    tensors = by_expert(mixture, tmp_path, router=router)
    mine = PeftModel.from_pretrained(mixture.build(), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(mixture.build(), str(tmp_path))
    torch.testing.assert_close(logits(mine), logits(theirs), rtol=1e-5, atol=1e-5)
    # And by the definition: each expert's own update, added to its part of the grouped weight.
    base: Any = mixture.build()
    for key in tensors:
        if not key.endswith("lora_A.weight"):
            continue
        delta = 3 * tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
        parts = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight").split(".")
        block = base.model.layers[int(parts[2])]
        if parts[-1] == "o_proj":
            block.self_attn.o_proj.weight.data += delta
        elif parts[-1] == "gate":
            block.mlp.gate.weight.data += delta
        elif parts[-1] == mixture.former[2]:
            block.mlp.experts.down_proj.data[int(parts[-2])] += delta
        else:
            start = 24 * mixture.former.index(parts[-1])
            block.mlp.experts.gate_up_proj.data[int(parts[-2]), start : start + 24] += delta
    torch.testing.assert_close(logits(mine), logits(base), rtol=1e-4, atol=1e-4)
    mine.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(mixture.build(), tmp_path / "again")
    assert torch.equal(logits(again), logits(mine))


def test_an_adapter_that_lacks_an_expert_is_named(tmp_path: Path) -> None:
    tensors = by_expert(QWEN3, tmp_path)
    rest = {key: tensor for key, tensor in tensors.items() if "layers.1.mlp.experts.2.up_proj" not in key}
    save_file(rest, tmp_path / "adapter_model.safetensors")
    with pytest.raises(
        manytune.CheckpointError, match=r"fit nothing in the model: .*layers\.1\.mlp\.experts\.0\.gate_proj"
    ):
        PeftModel.from_pretrained(QWEN3.build(), tmp_path)
    assert "gate_proj" in json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
