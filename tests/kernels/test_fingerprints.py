"""Fingerprints of tensors: the formula, and that no change of a weight goes unseen."""

import pytest
import torch
from tests.kernels.machine import needs_compiler
from tests.reference.fingerprints import PIECE, fingerprint

from manytune.kernels.fingerprints import fingerprints

pytestmark = needs_compiler


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200, PIECE, PIECE + 70])
def test_it_is_what_the_formula_says(library, count):
    tensor = torch.randn(count, generator=torch.Generator().manual_seed(count))
    assert fingerprints(library, [tensor]) == [fingerprint(tensor)]


def test_several_at_once_are_each_its_own_whatever_the_threads(library, two_threads):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(rows, 300, generator=generator) for rows in (1, 5, 2000, 3)]
    assert fingerprints(library, tensors) == [fingerprint(tensor) for tensor in tensors]
    assert fingerprints(library, []) == []


CHANGES = {
    "one value": lambda weight: weight[3, 4].add_(1e-6),
    "all signs": lambda weight: weight.neg_(),
    "signs of a column": lambda weight: weight[:, 5].neg_(),
    "signs of a row": lambda weight: weight[7].neg_(),
    "twice as much": lambda weight: weight.mul_(2),
    "two values exchanged": lambda weight: weight[0, :128].copy_(weight[0, :128].roll(64)),
    "two rows exchanged": lambda weight: weight.copy_(weight.roll(1, 0)),
    "another sign of zero": lambda weight: weight[0].zero_().neg_(),
    "the last value": lambda weight: weight[-1, -1].add_(1.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_seen_and_its_reversal_too(library, change):
    weight = torch.randn(96, 576, generator=torch.Generator().manual_seed(1))
    before = weight.clone()
    change(weight)
    assert fingerprints(library, [weight]) != fingerprints(library, [before])
    weight.copy_(before)
    assert fingerprints(library, [weight]) == fingerprints(library, [before])
