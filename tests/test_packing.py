"""What can be told of a model by looking at it; `tests/training/batches/test_support.py` runs models as well."""

import torch
from tests.store.tiny import tiny_model
from torch import nn

from manytune.packing import packing_obstacle


def test_a_causal_model_with_all_inputs_has_no_obstacle() -> None:
    assert packing_obstacle(tiny_model(), inputs=("position_ids", "logits_to_keep")) is None


def test_an_input_that_the_forward_does_not_take_is_named() -> None:
    found = packing_obstacle(tiny_model(), inputs=("position_ids", "token_type_ids"))
    assert found == "its forward takes no token_type_ids"


def test_a_module_that_carries_state_is_named_with_its_path() -> None:
    model = tiny_model()
    model.model.layers[0].mixer = nn.Conv1d(1, 1, 2)
    assert (
        packing_obstacle(model, inputs=()) == "model.layers.0.mixer (Conv1d) carries state across positions"
    )


def test_nothing_of_the_model_is_run() -> None:
    model = tiny_model()
    model.register_forward_pre_hook(lambda *_: 1 / 0)
    before = torch.get_rng_state()
    assert packing_obstacle(model, inputs=()) is None
    assert torch.equal(torch.get_rng_state(), before)
