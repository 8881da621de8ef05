"""Layers that run differently for a block: what was there before is there again, however blocks are nested."""

from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from manytune.layer_forwards import replaced_forwards, uncompiled


def doubled(module: nn.Linear, x: Tensor) -> Tensor:
    return 2 * nn.functional.linear(x, module.weight, module.bias)


def test_a_module_runs_the_function_inside_the_block_alone() -> None:
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    usual = layer(x)
    with replaced_forwards({layer: MethodType(doubled, layer)}):
        assert torch.equal(layer(x), 2 * usual)
    assert torch.equal(layer(x), usual)
    assert "forward" not in layer.__dict__


def test_a_forward_that_the_module_had_of_its_own_comes_back() -> None:
    layer = nn.Linear(3, 2)
    own: Any = lambda x: x + 1  # noqa: E731
    layer.__dict__["forward"] = own
    with replaced_forwards({layer: lambda x: x - 1}):
        assert layer(torch.ones(1)) == 0
        with replaced_forwards({layer: lambda x: 5 * x}):
            assert layer(torch.ones(1)) == 5
        assert layer(torch.ones(1)) == 0
    assert layer.__dict__["forward"] is own


def test_it_comes_back_after_an_error() -> None:
    layer = nn.Linear(3, 2)
    with pytest.raises(RuntimeError, match="stop"), replaced_forwards({layer: lambda x: x}):
        raise RuntimeError("stop")
    assert "forward" not in layer.__dict__


def test_a_compiled_form_is_not_called_in_the_functions_place() -> None:
    layer = nn.Linear(3, 2)
    form = lambda *_: pytest.fail("the compiled form was called")  # noqa: E731
    layer._compiled_call_impl = form
    with replaced_forwards({layer: lambda x: x}):
        assert layer(torch.ones(1)) == 1
    assert layer._compiled_call_impl is form
    with uncompiled([layer]):
        assert layer(torch.ones(1, 3)).shape == (1, 2)
    assert layer._compiled_call_impl is form


def test_a_form_that_is_compiled_inside_an_uncompiled_block_ends_with_it() -> None:
    layer = nn.Linear(3, 2)
    with uncompiled([layer]):
        layer.compile(backend="eager")
        assert layer._compiled_call_impl is not None
    assert layer._compiled_call_impl is None


def test_layers_around_one_function_bound_to_many_modules_share_a_compiled_form() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).relu()

    torch._dynamo.reset()
    layers = [Layer() for _ in range(6)]
    forwards = {layer.inner: MethodType(doubled, layer.inner) for layer in layers}
    with replaced_forwards(forwards), uncompiled(layers):
        for layer in layers:
            layer.compile(backend="eager")
        before = counters["stats"]["unique_graphs"]
        for layer in layers:
            layer(torch.randn(2, 3))
        assert counters["stats"]["unique_graphs"] == before + 1
