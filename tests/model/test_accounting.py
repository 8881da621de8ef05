"""How many parameters train, in closed form, and the line that says so."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from manytune import LoraConfig, get_peft_model


def one_layer(inner: int, outer: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inner, outer, bias=False))


@pytest.mark.parametrize(
    ("inner", "outer", "r", "trainable", "full"),
    [(64, 512, 8, 4_608, 32_768), (10, 10, 2, 40, 100)],
)
def test_r_times_the_sum_of_the_sides_train_instead_of_their_product(
    inner: int, outer: int, r: int, trainable: int, full: int
) -> None:
    model = get_peft_model(one_layer(inner, outer), LoraConfig(r=r, target_modules=["0"]))
    assert model.get_nb_trainable_parameters() == (trainable, full + trainable)


def test_rank_8_beside_512_by_64_saves_86_percent() -> None:
    model = get_peft_model(one_layer(64, 512), LoraConfig(r=8, target_modules=["0"]))
    trainable, total = model.get_nb_trainable_parameters()
    assert f"{100 * trainable / (total - trainable):.2f}" == "14.06"
    assert round(100 * (1 - trainable / (total - trainable))) == 86


def test_gpt2s_configuration_prints_the_line_that_peft_prints(capsys: pytest.CaptureFixture[str]) -> None:
    with torch.device("meta"):  # drawing so many numbers takes seconds
        base = GPT2LMHeadModel(GPT2Config())
    base.to_empty(device="cpu").tie_weights()
    assert sum(p.numel() for p in base.parameters()) == 124_439_808
    # 12 layers of c_attn, 768 → 2304, at rank 8.
    assert 12 * 8 * (768 + 2304) == 294_912
    get_peft_model(base, LoraConfig(task_type="CAUSAL_LM")).print_trainable_parameters()
    expected = "trainable params: 294,912 || all params: 124,734,720 || trainable%: 0.2364\n"
    assert capsys.readouterr().out == expected


def test_tied_parameters_count_once() -> None:
    base = nn.Sequential(
        nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False)
    )
    base[1].weight = base[0].weight
    model = get_peft_model(base, LoraConfig(r=1, target_modules=["2"]))
    assert model.get_nb_trainable_parameters() == (5, 9 + 6 + 5)
