"""HF PEFT's module paths to the classes of adapter layers."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from tests.methods.lora.compared_with_peft import Net
from torch import nn

import manytune
from manytune import IA3Config, LoraConfig, get_peft_model


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Conv2d(2, 4, 3)
        self.deep = nn.Conv3d(2, 4, 3)


def test_layers_are_distinguished_by_their_classes() -> None:
    from manytune.tuners.lora import Embedding, Linear, LoraLayer
    from manytune.tuners.tuners_utils import BaseTunerLayer
    from manytune.utils import ModulesToSaveWrapper
    from manytune.utils.other import AuxiliaryTrainingWrapper

    model = get_peft_model(Net(), LoraConfig(target_modules=["emb", "q"], modules_to_save=["head"]))
    base: Any = model.get_base_model()
    assert isinstance(base.emb, Embedding) and isinstance(base.layers[0].q, Linear)
    assert all(isinstance(layer, LoraLayer) and isinstance(layer, BaseTunerLayer) for layer in (base.emb,))
    assert isinstance(base.head, ModulesToSaveWrapper) and isinstance(base.head, AuxiliaryTrainingWrapper)
    assert not isinstance(base.c1, BaseTunerLayer)


@pytest.mark.parametrize(
    "module", ["tuners.lora", "tuners.ia3", "tuners.tuners_utils", "utils", "utils.other"]
)
def test_every_name_is_one_of_hf_peft(module: str) -> None:
    mine: Any = manytune
    theirs: Any = peft
    for part in module.split("."):
        mine, theirs = getattr(mine, part), getattr(theirs, part)
    assert [name for name in mine.__all__ if not hasattr(theirs, name)] == []


def test_ia3_layers_have_hf_pefts_names() -> None:
    options = {"target_modules": ["flat", "deep"], "feedforward_modules": []}
    torch.manual_seed(0)
    mine = get_peft_model(Convolutions(), IA3Config(**options))
    theirs = peft.get_peft_model(Convolutions(), peft.IA3Config(**options))
    names = [[layer.module_type for layer in model.get_layer_status()] for model in (mine, theirs)]
    assert names == [["ia3.Conv2d", "ia3.Conv3d"], ["Conv2d", "Conv3d"]]
