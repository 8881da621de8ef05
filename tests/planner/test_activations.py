"""What is kept for the backward pass, compared with what autograd keeps of small models."""

from typing import Any

import pytest
import torch
from tests.planner.configs import config_of
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM

from manytune.methods.registry import peft_config_from
from manytune.model.attach import get_peft_model
from manytune.planner.activations import activation_bytes
from manytune.planner.architecture import architecture_of
from manytune.planner.recipe import plan_from
from manytune.planner.trained import trained_of


def kept_by_autograd(model_type: str, method: dict[str, Any], layers: int, tokens: int) -> int:
    """Bytes that autograd keeps of one forward pass through the layers, weights not counted, each tensor once."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        config_of(
            model_type, num_hidden_layers=layers, **({"n_layer": layers} if model_type == "gpt2" else {})
        )
    )
    options = {key: value for key, value in method.items() if key != "name"}
    model = get_peft_model(model, peft_config_from(method["name"], task_type="CAUSAL_LM", **options))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}
    alive = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.is_floating_point():
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # an address that is freed would be used again
        return tensor

    ids = torch.randint(0, 96, (1, tokens))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=ids, logits_to_keep=1).logits.sum()
    return sum(found.values())


@pytest.mark.parametrize(
    ("model_type", "method", "within"),
    [
        ("llama", {"name": "lora", "r": 2}, 0.2),
        ("llama", {"name": "lora", "r": 2, "target_modules": "all-linear"}, 0.2),
        ("gpt2", {"name": "lora", "r": 2}, 0.2),
        ("opt", {"name": "lora", "r": 2}, 0.25),
        ("llama", {"name": "full"}, 0.2),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_a_layers_activations_are_what_autograd_keeps(
    model_type: str, method: dict[str, Any], within: float
) -> None:
    tokens = 48
    # The difference of two depths leaves out what is before and behind the layers.
    kept = (
        kept_by_autograd(model_type, method, 4, tokens) - kept_by_autograd(model_type, method, 2, tokens)
    ) / (2 * tokens)
    model = architecture_of(config_of(model_type).to_dict(), where="config.json")
    recipe = plan_from({"model": "x", "method": method})
    found = activation_bytes(model, trained_of(recipe.method, model), size=4)
    assert found.layer == pytest.approx(kept, rel=within)
