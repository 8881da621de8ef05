"""Linear layers by faster products while a model answers: the layers' results, and copies that are never stale."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tests.kernels.machine import assert_near, needs_compiler, without_kernels
from torch import nn
from transformers.pytorch_utils import Conv1D

from manytune.kernels import reordered
from manytune.kernels.fast_layers import fast_layers
from manytune.kernels.reordered import ReorderedWeights

SHARED = ("q", "k", "v")


class Block(nn.Module):
    """Three layers that read the same tensor, of which one has a bias, and two others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k = nn.Linear(24, 40, bias=False), nn.Linear(24, 8)
        self.v, self.up, self.down = nn.Linear(24, 16, bias=False), Conv1D(36, 24), nn.Linear(36, 24)

    def forward(self, x):
        shared = torch.cat([self.q(x), self.k(x), self.v(x)], -1)
        return shared, self.down(self.up(x))


@pytest.fixture
def block():
    return Block().eval()


def families(block):
    return [[getattr(block, name) for name in SHARED], [block.up], [block.down]]


def results(block, x, kept=None):
    with torch.no_grad(), fast_layers(families(block), kept):
        return block(x)


def assert_same(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        assert_near(mine, theirs)


@needs_compiler
@pytest.mark.parametrize("kept", [None, ReorderedWeights()], ids=["own weights", "copies"])
@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (2, 3, 24), (2, 0, 24)], ids=str)
def test_layers_compute_what_they_did(block, shape, kept):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = block(x)
    assert_same(results(block, x, kept), expected)
    assert_same(results(block, x.transpose(0, -2).contiguous().transpose(0, -2), kept), expected)
    assert "forward" not in block.q.__dict__


@needs_compiler
def test_layers_of_one_input_give_their_own_parts_whatever_is_asked_for_in_which_order(block):
    kept, draw = ReorderedWeights(), torch.Generator().manual_seed(2)
    first, second = torch.randn(3, 24, generator=draw), torch.randn(3, 24, generator=draw)
    with torch.no_grad():
        asked = [("v", first), ("q", second), ("q", first), ("k", first), ("k", second), ("q", first)]
        expected = [getattr(block, name)(x) for name, x in asked]
        with fast_layers(families(block), kept):
            assert_same([getattr(block, name)(x) for name, x in asked], expected)
            # A tensor that was written to in between is another one.
            block.q(first)
            first.neg_()
            found = block.k(first)
        assert_near(found, block.k(first))


@needs_compiler
def test_gradients_and_other_dtypes_go_through_the_layers_themselves(block):
    kept = ReorderedWeights()
    x = torch.randn(5, 24, requires_grad=True)
    with fast_layers(families(block), kept):
        sum(part.sum() for part in block(x)).backward()
        found = x.grad.clone(), block.q.weight.grad.clone()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert block.q(x).dtype == torch.bfloat16
    block.zero_grad()
    x.grad = None
    sum(part.sum() for part in block(x)).backward()
    assert torch.equal(found[0], x.grad) and torch.equal(found[1], block.q.weight.grad)
    wide = Block().double().eval()
    results(wide, x.double().detach(), kept)
    assert kept.nbytes == 0


def scaled(block):
    with torch.no_grad():
        block.q.weight.mul_(2)


def through_data(block):
    block.k.weight.data.neg_()


def through_numpy(block):
    block.v.weight.detach().numpy()[0, 0] += 1


def other_storage(block):
    block.q.weight.data = torch.randn(40, 24)


def other_parameter(block):
    block.k.weight = nn.Parameter(torch.randn(8, 24))


def loaded(block):
    block.load_state_dict({name: value + 1 for name, value in block.state_dict().items()})


def assigned(block):
    state = {name: value.clone() + 1 for name, value in block.state_dict().items()}
    block.load_state_dict(state, assign=True)


def bias(block):
    block.k.bias.data.add_(3)


def there_and_back(block):
    block.double().float()
    block.q.weight.data.mul_(1.5)


def rows_exchanged(block):
    block.q.weight.data.copy_(block.q.weight.data.roll(1, 0))


def another_shape(block):
    block.v.weight.data = block.v.weight.data[:12].clone()
    block.v.out_features = 12


CHANGES = (
    scaled,
    through_data,
    through_numpy,
    other_storage,
    other_parameter,
    loaded,
    assigned,
    bias,
    there_and_back,
    rows_exchanged,
    another_shape,
)


@needs_compiler
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_copy_is_never_used_for_other_weights(block, change):
    kept, x = ReorderedWeights(), torch.randn(6, 24, generator=torch.Generator().manual_seed(3))
    before = results(block, x, kept)
    change(block)
    with torch.no_grad():
        expected = block(x)
    found = results(block, x, kept)
    assert_same(found, expected)
    assert found[0].shape != before[0].shape or not torch.allclose(found[0], before[0], atol=1e-3)


@needs_compiler
def test_copies_are_kept_while_weights_are_what_they_were_and_freed_afterwards(block, monkeypatch):
    made = []
    plain = reordered.pack
    monkeypatch.setattr(reordered, "pack", lambda weight: made.append(weight) or plain(weight))
    kept, x = ReorderedWeights(), torch.randn(2, 24)
    results(block, x, kept)
    assert len(made) == 2  # Conv1D's is stored transposed, and stays as it is
    assert kept.nbytes == 4 * (24 * 64 + 36 * 24)
    results(block, x, kept)
    block.double().float()
    results(block, x, kept)
    assert len(made) == 2
    block.down.weight.data.add_(1)
    results(block, x, kept)
    assert len(made) == 3
    with torch.no_grad(), fast_layers([[block.down]], kept):
        assert kept.nbytes == 4 * 36 * 24  # the others', which aren't layers any more, are gone
    del block.down
    assert kept.nbytes == 0
    results(Block(), x, kept)
    kept.clear()
    assert kept.nbytes == 0


@needs_compiler
def test_copies_that_are_made_in_inference_mode_serve_outside_of_it_as_well(block):
    kept, x = ReorderedWeights(), torch.randn(2, 24)
    with torch.inference_mode():
        results(block, x, kept)
    with torch.no_grad():
        assert_same(results(block, x, kept), block(x))


@needs_compiler
def test_copies_and_pickles_of_the_keeper_are_empty(block):
    kept = ReorderedWeights()
    results(block, torch.randn(2, 24), kept)
    assert kept.nbytes and copy.deepcopy(kept).nbytes == 0 and pickle.loads(pickle.dumps(kept)).nbytes == 0


def test_without_kernels_or_memory_there_are_no_copies_and_the_results_are_the_same(block, monkeypatch):
    kept, x = ReorderedWeights(), torch.randn(2, 24)
    with torch.no_grad():
        expected = block(x)
    monkeypatch.setattr(reordered, "free_memory", lambda: 1000)
    assert_same(results(block, x, kept), expected)
    assert kept.nbytes == 0
    without_kernels(monkeypatch)
    assert_same(results(block, x, kept), expected)
    assert kept.nbytes == 0


def test_hooks_run_and_a_forward_of_a_layers_own_stays(block):
    seen = []
    block.q.register_forward_hook(lambda module, args, result: seen.append("q"))
    block.down.forward = lambda x: x * 0
    shared, last = results(block, torch.randn(2, 24), ReorderedWeights())
    assert seen == ["q"] and not last.any() and shared.any()
