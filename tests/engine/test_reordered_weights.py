"""Reordered weights change nothing but rounding."""

import pytest
import torch
from tests.engine.adapters import gpt2, llama

from manytune.engine.reordered_weights import can_reorder, reordered_layers


@pytest.mark.skipif(not can_reorder(llama()), reason="there is neither a C++ compiler nor oneDNN")
@pytest.mark.parametrize("rows", [1, 3, 32, 70])
def test_reordered_layers_compute_what_the_plain_ones_do(rows):
    model = llama()
    layers = reordered_layers(model)
    assert len(layers) == 7 * 2 + 1
    # Queries, keys and values are asked in their order for one input, and by themselves for another.
    shared = torch.randn(1, rows, 32)
    with torch.inference_mode():
        for path, forward in layers.items():
            module = model.get_submodule(path)
            inputs = [torch.randn(1, rows, module.in_features)]
            inputs += [shared] if module.in_features == 32 else []
            for x in inputs:
                torch.testing.assert_close(forward(x), module(x), atol=1e-5, rtol=1e-5)


def test_layers_that_cannot_be_reordered_stay_plain():
    assert "transformer.h.0.attn.c_attn" not in reordered_layers(gpt2())
    assert not can_reorder(llama().double())
