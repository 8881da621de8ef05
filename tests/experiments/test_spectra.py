import pytest
import torch

from manytune.experiments.spectra import directions_holding, effective_rank, singular_values, spectrum_of
from manytune.methods.tuners.terms import ParameterUpdate, Terms, Update


def factors(values, inside=12, outside=9, rank=4):
    """B and A whose product has these singular values."""
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(outside, rank, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(inside, rank, dtype=torch.float64))
    mixing = torch.randn(rank, rank, dtype=torch.float64)
    b = left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ mixing
    a = torch.linalg.inv(mixing) @ right.T
    return a, b


def test_singular_values_are_those_of_the_product_that_is_never_formed():
    a, b = factors([3.0, 2.0, 1.0, 0.5])
    assert singular_values(a, b).tolist() == pytest.approx([3.0, 2.0, 1.0, 0.5])
    assert singular_values(a, b).tolist() == pytest.approx(torch.linalg.svdvals(b @ a)[:4].tolist())


def test_a_rank_larger_than_the_matrix_is_no_matter():
    a, b = torch.randn(8, 5), torch.randn(3, 8)
    values = singular_values(a, b)
    assert values.tolist() == pytest.approx(torch.linalg.svdvals((b @ a).double())[:3].tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0, 1.0, 1.0, 1.0], 4.0), ([5.0, 0.0, 0.0, 0.0], 1.0), ([0.0, 0.0], 0.0), ([1.0, 1.0, 0.0], 2.0)],
)
def test_the_effective_rank_counts_equal_directions(values, expected):
    assert effective_rank(torch.tensor(values)) == pytest.approx(expected)


def test_directions_hold_their_share_of_the_squares():
    values = torch.tensor([3.0, 1.0, 0.1])  # squares 9, 1, 0.01
    assert directions_holding(values, 0.89) == 1
    assert directions_holding(values, 0.9) == 2
    assert directions_holding(torch.zeros(3), 0.9) == 0


def test_an_adapters_spectrum_is_the_mean_over_its_updates():
    equal, single = factors([1.0, 1.0, 1.0, 1.0]), factors([1.0, 0.0, 0.0, 0.0])
    updates = {"layers.0.q_proj": Update(*equal, scaling=2.0), "layers.0.v_proj": Update(*single)}
    found = spectrum_of(Terms(updates=updates))
    assert found.effective_rank == pytest.approx(2.5)
    assert found.directions == pytest.approx(2.5)
    assert found.by_module == pytest.approx({"q_proj": 4.0, "v_proj": 1.0})


def test_an_adapter_without_low_rank_updates_has_no_spectrum():
    whole = {"head": Update(None, torch.ones(3, 3))}
    for terms in (Terms(embeddings=torch.zeros(2, 3)), Terms(updates=whole)):
        assert spectrum_of(terms) is None


def test_each_expert_and_each_router_has_a_spectrum_of_its_own():
    one, three = factors([1.0, 0.0, 0.0, 0.0]), factors([1.0, 1.0, 1.0, 0.0])
    down, up = (torch.stack(both) for both in zip(one, three, strict=True))
    terms = Terms(
        parameters={
            "layers.0.experts.down_proj": ParameterUpdate(down, up, 2.0),
            "layers.0.gate.weight": ParameterUpdate(*one),
        }
    )
    found = spectrum_of(terms)
    assert found.by_module == pytest.approx({"down_proj": 2.0, "gate": 1.0})
