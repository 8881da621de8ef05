"""What the kernels need of a machine."""

import os
import platform

import pytest
import torch

from manytune.kernels import build

COMPILER, _ = build.find_compiler()

needs_compiler = pytest.mark.skipif(
    platform.system() != "Linux" or COMPILER is None or os.environ.get("MANYTUNE_KERNELS") == "torch",
    reason="the kernels need Linux, a C++ compiler, and not MANYTUNE_KERNELS=torch",
)


def assert_near(found, expected, what="", *, tolerance=2e-5):
    """Equal in float32: apart by some units in the last place of the largest value, which is 1 or more."""
    assert found.shape == expected.shape, what
    found, expected = found.detach().double(), expected.detach().double()
    size = max(float(expected.abs().max()) if expected.numel() else 0.0, 1.0)
    torch.testing.assert_close(
        found, expected, atol=tolerance * size, rtol=0, msg=lambda said: f"{what}: {said}"
    )


def without_kernels(monkeypatch):
    """From here on as in a process whose machine has none."""
    none = build.KernelLoader(build.Kernels(None, "torch's own"))
    monkeypatch.setattr(build, "_of_this_process", none)
