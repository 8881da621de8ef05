"""What accelerate makes of the policy: which modules become units of FSDP and of FSDP2."""

from __future__ import annotations

import peft
import pytest
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from tests.store.tiny import tiny_model
from tests.training.tiny_run import lora
from torch import nn
from torch.distributed.fsdp.wrap import _recursive_wrap

from manytune import ConfigError
from manytune.model.wrap_policy import CHOSEN
from manytune.utils.other import fsdp_auto_wrap_policy


class Unit(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def units_of_fsdp2(model: nn.Module) -> list[str]:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.auto_wrap_policy = fsdp_auto_wrap_policy(model)
    plugin.set_auto_wrap_policy(model)
    chosen = fsdp2_prepare_auto_wrap_policy(plugin, model)
    assert chosen is not None
    return [type(module).__name__ for module in model.modules() if chosen(module)]


def units_of_fsdp(model: nn.Module) -> list[str]:
    _recursive_wrap(model, fsdp_auto_wrap_policy(model), Unit, set(), set())
    return [type(module.module).__name__ for module in model.modules() if isinstance(module, Unit)]


def test_each_layer_is_a_unit_for_fsdp_and_for_fsdp2() -> None:
    model = lora()
    assert units_of_fsdp2(model) == ["LlamaDecoderLayer"] * 2
    assert units_of_fsdp(model) == ["LlamaDecoderLayer"] * 2


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # HF PEFT's model
def test_hf_pefts_policy_is_none_that_accelerates_fsdp2_knows() -> None:
    """Its layers are one unit then, which is why this one has another form."""
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["q_proj"]))
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.auto_wrap_policy = peft.utils.other.fsdp_auto_wrap_policy(model)
    assert fsdp2_prepare_auto_wrap_policy(plugin, model) is None


def test_the_users_choice_of_classes_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOSEN, "LlamaMLP")
    assert units_of_fsdp(lora()) == ["LlamaMLP"] * 2


def test_a_class_that_is_not_there_is_named_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOSEN, "GPT2Block")
    with pytest.raises(ConfigError, match=r"names GPT2Block.*one of .*LlamaDecoderLayer"):
        fsdp_auto_wrap_policy(lora())


def test_a_model_that_names_no_layers_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match=rf"names no layers.*Set {CHOSEN}"):
        fsdp_auto_wrap_policy(nn.Sequential(nn.Linear(2, 2)))
