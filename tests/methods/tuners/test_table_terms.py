"""With a table of its own, an adapter's terms at a layer are one whole weight: the formula, written out."""

from __future__ import annotations

import pytest
import torch
from tests.reference.terms import in_layers
from torch import Tensor, nn

from manytune.methods.tuners.base_layers import BaseLayers
from manytune.methods.tuners.table_terms import over_tables
from manytune.methods.tuners.terms import Factors, Terms, TermsError, Update


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_head_with_factors_a_shift_and_an_update() -> None:
    net, x = Net(), numbers(3, 4, seed=1)
    a, c, d = numbers(4, seed=2), numbers(7, seed=3), numbers(7, seed=4)
    down, up, f, own = numbers(2, 4, seed=5), numbers(7, 2, seed=6), numbers(7, seed=7), numbers(7, 4, seed=8)
    terms = Terms(updates={"head": Update(down, up, 0.5, up_bias=f)}, factors={"head": Factors(a, c, d)})
    found = over_tables(terms, BaseLayers(net), {net.head.weight: own})
    expected = c * ((a * x) @ own.t() + net.head.bias) + d + 0.5 * (x @ down.t() @ up.t() + f)
    with in_layers(net, found):
        torch.testing.assert_close(net.head(x), expected)


def test_an_embedding_with_an_update() -> None:
    net, ids = Net(), torch.tensor([1, 6, 0])
    down, up, own = numbers(2, 7, seed=5), numbers(4, 2, seed=6), numbers(7, 4, seed=8)
    terms = Terms(updates={"table": Update(down, up, 0.5, lookup=True)})
    found = over_tables(terms, BaseLayers(net), {net.table.weight: own})
    with in_layers(net, found):
        torch.testing.assert_close(net.table(ids), own[ids] + 0.5 * down[:, ids].t() @ up.t())


def test_all_modules_that_share_the_table_get_it() -> None:
    net, own = Net(), numbers(7, 4, seed=8)
    net.head.weight = net.table.weight
    found = over_tables(Terms(), BaseLayers(net), {net.table.weight: own})
    assert found.updates.keys() == {"table", "head"}
    x = numbers(3, 4, seed=1)
    with in_layers(net, found):
        torch.testing.assert_close(net.head(x), x @ own.t() + net.head.bias)


def test_what_does_not_add_up_with_a_table_is_refused() -> None:
    net = Net()
    own = {net.head.weight: numbers(7, 4, seed=8)}
    network = Terms({"table": Update(numbers(2, 4, seed=1), numbers(4, 2, seed=2))}, "relu", True)
    with pytest.raises(TermsError, match="nonlinearity"):
        over_tables(network, BaseLayers(net), own)
    elsewhere = Terms({"head": Update(numbers(2, 4, seed=1), numbers(7, 2, seed=2), source="table")})
    with pytest.raises(TermsError, match="reads something else"):
        over_tables(elsewhere, BaseLayers(net), own)
