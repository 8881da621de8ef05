"""What adapters adapt, by the base's names, as trainers and scripts ask for it: HF PEFT's answers."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import pytest
from tests.methods.tiny_models import BERT, LLAMA, T5
from tests.methods.tiny_moe import DEEPSEEK, QWEN3

import manytune

EXPERTS = ["experts.gate_up_proj", "experts.down_proj", "gate.weight"]

CASES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "lora": (LLAMA.build, "LoraConfig", {"target_modules": ["q_proj", "down_proj"]}),
    "lora with a saved module": (LLAMA.build, "LoraConfig", {"modules_to_save": ["lm_head"]}),
    "classifier": (BERT.build, "LoraConfig", {"task_type": "SEQ_CLS"}),
    "ia3": (T5.build, "IA3Config", {"task_type": "SEQ_2_SEQ_LM"}),
    "vera": (LLAMA.build, "VeraConfig", {"r": 2}),
    "adalora": (LLAMA.build, "AdaLoraConfig", {"total_step": 5}),
    "experts": (QWEN3.build, "LoraConfig", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "experts alone": (DEEPSEEK.build, "LoraConfig", {"target_modules": [], "target_parameters": EXPERTS[1:]}),
}


@pytest.mark.parametrize("name", CASES)
def test_targeted_names_are_pefts(name: str) -> None:
    build, config, options = CASES[name]
    mine = manytune.get_peft_model(build(), getattr(manytune, config)(**options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(build(), getattr(peft, config)(**options))
    for asked in (mine, mine.base_model):
        assert asked.targeted_module_names == theirs.targeted_module_names
        assert asked.targeted_parameter_names == theirs.targeted_parameter_names
    mine.add_adapter("second", getattr(manytune, config)(**options))
    assert mine.targeted_module_names == theirs.targeted_module_names
    assert mine.targeted_parameter_names == theirs.targeted_parameter_names


def test_a_soft_prompt_targets_nothing() -> None:
    config = manytune.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = manytune.get_peft_model(LLAMA.build(), config)
    assert (model.targeted_module_names, model.targeted_parameter_names) == ([], [])


def test_containers_of_adapters_are_named_by_every_wrapper() -> None:
    config = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    mine: Any = manytune.get_peft_model(LLAMA.build(), manytune.LoraConfig(**config))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs: Any = peft.get_peft_model(LLAMA.build(), peft.LoraConfig(**config))  # type: ignore[arg-type]
    for path in ("lm_head", "model.layers.0.self_attn.q_proj"):
        wrappers = [model.base_model.model.get_submodule(path) for model in (mine, theirs)]
        assert wrappers[0].adapter_layer_names == wrappers[1].adapter_layer_names
    assert (
        mine.base_model.model.lm_head.other_param_names == theirs.base_model.model.lm_head.other_param_names
    )
    assert mine.base_model.model.lm_head.merged_adapters == []
