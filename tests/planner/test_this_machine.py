"""This machine as hardware."""

from tests.planner.configs import llama

from manytune.planner.architecture import architecture_of
from manytune.planner.this_machine import measure_this_machine


def test_products_bandwidth_and_memory_of_this_machine_are_measured() -> None:
    found = measure_this_machine(architecture_of(llama(), where="model"), "float32", seconds=0.01)
    assert found.measured and found.tflops["float32"] > 0
    assert found.bandwidth_gb_s > 0.01 and found.memory_gib > 0.01
