"""What the kernels need of a machine."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from manytune.kernels import build

COMPILER, _ = build.find_compiler()
_INSTRUCTIONS = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []

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


#: Builds without AVX-512 and without AVX2, and what a processor needs for them.
lesser_processors = pytest.mark.parametrize(("target", "needed"), [("x86-64-v3", "avx2"), ("x86-64", "sse2")])


def assert_build_is_right(check: str, target: str, needed: str, cache: Path) -> None:
    """A script, in a process of its own, finds no difference in what the compiler makes for a target.

    Args:
        check: The script, which prints the difference last; its argument is the target.
        target: As `-march` takes it.
        needed: What the processor here needs for that.
        cache: A directory.
    """
    if needed not in _INSTRUCTIONS:
        pytest.skip(f"this processor has no {needed}")
    done = subprocess.run(
        [sys.executable, "-c", check, target],
        capture_output=True,
        text=True,
        timeout=600,
        env={"PYTHONPATH": ":".join(sys.path), "MANYTUNE_CACHE": str(cache), "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.strip().endswith("difference None"), done.stdout + done.stderr
