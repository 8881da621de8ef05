"""The table of devices, and devices of one's own."""

import pytest

from manytune.errors import RecipeError
from manytune.planner.hardware import hardware_of, table


def test_every_device_says_where_its_figures_are_from() -> None:
    for name, device in table().items():
        assert any(f"{year}" in device.source for year in range(2019, 2026)), name
        assert device.price_per_hour is None


def test_dense_figures_are_not_those_with_sparsity() -> None:
    """What the H100's data sheet gives with sparsity: 1,979 TFLOP/s in bfloat16 and 3,958 in FP8."""
    device = table()["h100-sxm"]
    assert device.flops("bfloat16") == pytest.approx(1979e12 / 2, rel=1e-3)
    assert device.flops("float8") == pytest.approx(3958e12 / 2, rel=1e-3)
    assert device.bandwidth == 3350e9 and device.memory == 80 * 2**30


def test_eight_bits_are_as_fast_as_sixteen_where_they_have_no_units_and_half_precision_is_half_precision() -> (
    None
):
    assert table()["a100-sxm-80gb"].flops("float8") == 312e12
    assert table()["t4"].flops("bfloat16") == 65e12


def test_a_dtype_without_a_figure_is_refused() -> None:
    device = hardware_of({"memory_gib": 8, "bandwidth_gb_s": 100, "tflops": {"bfloat16": 1}}, where="plan")
    with pytest.raises(RecipeError, match=r"no FLOP/s are known of products in float32; known: bfloat16"):
        device.flops("float32")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("h100", r"found 'h100' \(text\); did you mean 'h\d00-"),
        ({"memory_gib": 8}, "hardware: bandwidth_gb_s: this key is missing"),
        (
            {"memory_gib": 0, "bandwidth_gb_s": 1, "tflops": {"bfloat16": 1}},
            "memory_gib: expected a number greater than 0",
        ),
        ({"memory_gb": 8, "bandwidth_gb_s": 1, "tflops": {"bfloat16": 1}}, "did you mean 'memory_gib'"),
        ({"memory_gib": 8, "bandwidth_gb_s": 1, "tflops": {}}, "tflops"),
    ],
)
def test_a_device_that_cannot_be_is_refused_in_a_sentence(asked: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        hardware_of(asked, where="plan.yaml")  # type: ignore[arg-type]
