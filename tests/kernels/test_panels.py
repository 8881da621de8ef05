"""The kernel for products with weights in panels, against torch in float64; and rows that nothing else changes."""

import pytest
import torch
from tests.kernels.machine import assert_build_is_right, assert_near, lesser_processors, needs_compiler

from manytune.kernels import packed, panels
from manytune.kernels.packed import pack

pytestmark = needs_compiler

SIZES = [(48, 16), (1, 1), (47, 3), (50, 70), (192, 576), (100, 1200)]
ROWS = [1, 2, 3, 7, 8, 9, 23, 24, 64, 65, 130]


def drawn(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def product(library, x, weight, bias=None):
    values = panels.pack(library, weight)
    return panels.multiply(library, x, values, panels.padded_bias(values, bias), len(weight))


@pytest.mark.parametrize(("out", "width"), SIZES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_products_are_torchs(library, rows, out, width):
    x, weight, bias = drawn((rows, width), (out, width), (out,))
    expected = x.double() @ weight.double().T
    assert_near(product(library, x, weight), expected)
    assert_near(product(library, x, weight, bias), expected + bias)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_row_has_the_same_values_in_any_company(library, threads):
    x, weight, bias = drawn((130, 700), (500, 700), (500,), seed=1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = product(library, x, weight, bias)
        for first, last in ((0, 1), (5, 8), (60, 93), (129, 130), (1, 129)):
            assert torch.equal(product(library, x[first:last], weight, bias), whole[first:last])
    finally:
        torch.set_num_threads(before)


def test_rows_may_be_apart(library):
    (wide,), (weight,) = drawn((9, 100)), drawn((60, 40), seed=2)
    x = wide[:, 17:57]
    assert torch.equal(product(library, x, weight), product(library, x.contiguous(), weight))


def test_no_rows_give_no_rows(library):
    assert product(library, torch.empty(0, 40), *drawn((60, 40))).shape == (0, 60)


@pytest.mark.parametrize("shape", [(24,), (3, 24), (2, 5, 24), (2, 0, 24)], ids=str)
def test_a_packed_weight_keeps_the_inputs_shape(shape):
    weight, bias = drawn((70, 24), (70,), seed=3)
    (x,) = drawn(shape, seed=4)
    found = pack(weight)
    assert found.in_panels and found.nbytes == weight.nbytes
    assert_near(found.product(bias)(x), torch.nn.functional.linear(x, weight, bias))
    turned = x.transpose(0, -2).contiguous().transpose(0, -2) if x.dim() > 1 else x
    assert torch.equal(found.product(bias)(turned), found.product(bias)(x))


@pytest.mark.skipif(not packed._HAS_ONEDNN, reason="this torch has no oneDNN")
def test_bfloat16_is_onednns(monkeypatch):
    weight, x = (one.bfloat16() for one in drawn((70, 24), (5, 24)))
    found = pack(weight)
    assert not found.in_panels
    torch.testing.assert_close(found.product(None)(x), x @ weight.T)


CHECK = """
import ctypes, sys
import torch
from manytune.kernels import build
from manytune.kernels.check import difference

compiler, _ = build.find_compiler()
flags = tuple(flag.replace("native", sys.argv[1]) for flag in build._FLAGS)
print("difference", difference(ctypes.CDLL(str(build.compiled(compiler, flags)))))
"""


@lesser_processors
def test_a_build_for_a_lesser_processor_computes_the_same(target, needed, tmp_path):
    assert_build_is_right(CHECK, target, needed, tmp_path)
