"""Mixtures of experts, and convolutions with groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.methods.tiny_moe import DEEPSEEK, GPT_OSS, QWEN3
from tests.methods.tiny_moe import logits as logits_of_mixture
from tests.parity.calls.call import call, differs, trains
from tests.parity.observed import Seen
from tests.parity.session import scatter
from torch import nn

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


@call
def parameters_of_experts(peft: Any, directory: Path, seen: Seen) -> None:
    torch.manual_seed(3)
    model = peft.get_peft_model(
        QWEN3.build(), peft.LoraConfig(r=2, target_modules=["q_proj"], target_parameters=EXPERTS)
    )
    scatter(model)
    seen.note("trains", trains(model))
    seen.note("output", logits_of_mixture(model.eval()))


@differs(routers="trains")
def all_linear_layers_of_a_mixture(peft: Any, directory: Path, seen: Seen) -> None:
    seen.note(
        "trains",
        trains(peft.get_peft_model(QWEN3.build(), peft.LoraConfig(r=2, target_modules="all-linear"))),
    )


@differs(all_experts="experts train")
def all_linear_layers_of_a_mixture_that_always_was_grouped(peft: Any, directory: Path, seen: Seen) -> None:
    model = peft.get_peft_model(GPT_OSS.build(), peft.LoraConfig(r=2, target_modules="all-linear"))
    seen.note("experts train", any("experts" in name for name in trains(model)))


@differs(shared_experts="shared experts train")
def experts_by_the_names_of_their_layers(peft: Any, directory: Path, seen: Seen) -> None:
    model = peft.get_peft_model(
        DEEPSEEK.build(), peft.LoraConfig(r=2, target_modules=["gate_proj", "up_proj", "down_proj"])
    )
    seen.note("shared experts train", any("shared_experts" in name for name in trains(model)))


@differs(parameter_dropout="attach")
def dropout_at_a_parameter(peft: Any, directory: Path, seen: Seen) -> None:
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=EXPERTS, lora_dropout=0.5)
    seen.attempt("attach", lambda: peft.get_peft_model(QWEN3.build(), config))


@differs(parameters_of_each="add")
def other_parameters_for_a_second_adapter(peft: Any, directory: Path, seen: Seen) -> None:
    model = peft.get_peft_model(
        QWEN3.build(), peft.LoraConfig(r=2, target_modules=[], target_parameters=EXPERTS[:1])
    )
    second = peft.LoraConfig(r=2, target_modules=[], target_parameters=EXPERTS[1:])
    seen.attempt("add", lambda: model.add_adapter("other", second))


@differs(parameters_mixed=("for each sample", "sum"))
def parameters_in_mixed_batches_and_sums(peft: Any, directory: Path, seen: Seen) -> None:
    def config() -> Any:
        return peft.LoraConfig(r=2, target_modules=[], target_parameters=EXPERTS)

    torch.manual_seed(3)
    model = peft.get_peft_model(QWEN3.build(), config()).eval()
    model.add_adapter("other", config())
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    with torch.no_grad():
        seen.attempt("for each sample", lambda: model(ids, adapter_names=["default", "other"]).logits)
    names = ["default", "other"]
    seen.attempt("sum", lambda: model.add_weighted_adapter(names, [0.5, 0.5], "sum", combination_type="cat"))


@differs(parameters_excluded=("layers", "exclude"))
def parameters_that_options_for_modules_leave_out(peft: Any, directory: Path, seen: Seen) -> None:
    options = {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["layers.1.mlp.experts.down_proj"]}
    seen.attempt(
        "layers",
        lambda: peft.get_peft_model(QWEN3.build(), peft.LoraConfig(layers_to_transform=[0], **options)),
    )
    seen.attempt(
        "exclude",
        lambda: peft.get_peft_model(
            QWEN3.build(), peft.LoraConfig(exclude_modules=["experts.down_proj"], **options)
        ),
    )


@differs(dora_groups="output")
def dora_at_a_convolution_with_groups(peft: Any, directory: Path, seen: Seen) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2))
    torch.manual_seed(3)
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0"], use_dora=True))
    scatter(model)
    seen.attempt("output", lambda: model.eval()(torch.ones(1, 4, 5, 5)))
