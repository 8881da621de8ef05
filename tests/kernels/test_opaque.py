"""Operations that torch.compile doesn't look into."""

import pytest
import torch

from manytune.kernels.opaque import opaque

CALLS = []


def _doubled(x):
    CALLS.append(x.tolist())  # a list of numbers, which no compiled graph can hold
    return x + x


doubled = opaque("doubled_for_a_test(Tensor x) -> Tensor", _doubled, lambda x: x.new_empty(x.shape))


def test_it_is_the_function_and_an_operation_of_torch():
    CALLS.clear()
    assert torch.equal(doubled(torch.tensor([1.0, 2.0])), torch.tensor([2.0, 4.0]))
    assert torch.equal(torch.ops.manytune.doubled_for_a_test(torch.tensor([3.0])), torch.tensor([6.0]))
    assert CALLS == [[1.0, 2.0], [3.0]]
    torch.library.opcheck(doubled, (torch.ones(3),), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # torch's own, in its compiler
def test_a_compiled_function_calls_it_as_it_is():
    CALLS.clear()
    compiled = torch.compile(lambda x: doubled(x + 1) * 3, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(torch.tensor([1.0])), torch.tensor([12.0]))
    assert CALLS == [[2.0]]
