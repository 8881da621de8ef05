"""Products through oneDNN: the usual values but for rounding, inside their block alone."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from manytune import LoraConfig, get_peft_model
from manytune.kernels import products
from manytune.kernels.products import fast_products, product, usual_products
from manytune.methods.lora import linear as lora

pytestmark = pytest.mark.skipif(not products._AVAILABLE, reason="this torch has no oneDNN")

LAYERS = [
    lambda: nn.Linear(24, 40),
    lambda: nn.Linear(24, 40, bias=False),
    lambda: Conv1D(40, 24),
]


@pytest.fixture
def counted(monkeypatch):
    """How many products oneDNN has made."""
    calls = []
    multiply = products._onednn
    monkeypatch.setattr(products, "_onednn", lambda *given: calls.append(0) or multiply(*given))
    return calls


def results(layer, x):
    """A layer's output and all its gradients."""
    x = x.clone().requires_grad_()
    for parameter in layer.parameters():
        parameter.grad = None
    y = layer(x)
    y.sin().sum().backward()
    return [y.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("shape", [(7, 24), (2, 3, 24), (1, 24)])
def test_a_layer_gives_what_it_gives_in_float64_but_for_rounding(make, shape, counted):
    torch.manual_seed(0)
    layer, x = make(), torch.randn(shape)
    expected = results(copy.deepcopy(layer).double(), x.double())
    with fast_products(layer):
        found = results(layer, x)
    assert len(counted) == 2  # the output and the gradient of the input
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=1e-5)


def test_a_frozen_layer_asks_for_no_gradient_of_its_weight():
    layer = nn.Linear(24, 40).requires_grad_(False)
    x = torch.randn(3, 24, requires_grad=True)
    with fast_products(layer):
        layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None


@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_may_be_a_transposed_view(transposed, counted):
    x, weight = torch.randn(5, 24), torch.randn(40, 24)
    given = weight.t().contiguous().t() if transposed else weight
    found = product(x, given)
    assert counted
    torch.testing.assert_close(found, x @ weight.t(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_torch(dtype, counted):
    layer, x = nn.Linear(24, 40, dtype=dtype), torch.randn(3, 24, dtype=dtype)
    expected = layer(x)
    with fast_products(layer):
        assert torch.equal(layer(x), expected)
    assert not counted


def test_autocast_is_left_to_torch(counted):
    layer, x = nn.Linear(24, 40), torch.randn(3, 24)
    with fast_products(layer), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert not counted


def test_outside_the_block_everything_is_as_usual(counted):
    model = nn.Sequential(nn.Linear(24, 40), Conv1D(8, 40))
    x = torch.randn(3, 24)
    expected = model(x)
    with pytest.raises(RuntimeError, match="stop"), fast_products(model):
        model(x)
        raise RuntimeError("stop")
    assert len(counted) == 2
    assert torch.equal(model(x), expected)
    assert len(counted) == 2


def test_a_forward_that_somebody_put_into_a_layer_is_kept(counted):
    layer = nn.Linear(24, 40)
    layer.forward = lambda x: x + 1
    with fast_products(layer):
        assert layer(torch.zeros(1)) == 1
    assert not counted


def test_a_fast_form_is_not_inherited_by_a_class_with_a_forward_of_its_own(counted):
    class Twice(lora.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = get_peft_model(nn.Sequential(nn.Linear(24, 40)), LoraConfig(target_modules=["0"], r=4))
    layer = model.base_model.model[0]
    layer.__class__ = Twice
    x = torch.randn(3, 24)
    expected = model(x)
    with fast_products(model):
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_lora_layers_stay_fused_inside(counted):
    model = get_peft_model(nn.Sequential(nn.Linear(24, 40)), LoraConfig(target_modules=["0"], r=4))
    x = torch.randn(3, 24)
    expected = model(x)
    with fast_products(model):
        found = model(x)
    assert len(counted) == 2  # x Wᵀ and x Aᵀ
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_block_inside_has_the_usual_bits(counted):
    model = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 8))
    x = torch.randn(3, 24)
    usual = model(x)
    with fast_products(model):
        with usual_products(model):
            assert torch.equal(model(x), usual)
            assert not counted
        model(x)
        assert counted
