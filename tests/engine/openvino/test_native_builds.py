"""What compilers make of the adapters' operation for processors without AVX-512, and without AVX2, is right, too.

Each build is used in a process of its own: operations of one name are registered once a process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.kernels.machine import needs_compiler

INSTRUCTIONS = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
CHECK = """
import sys

from manytune.engine.openvino import native
from manytune.kernels.build import find_compiler

native._FLAGS = tuple(flag.replace("native", sys.argv[1]) for flag in native._FLAGS)
compiler, _ = find_compiler()
made = native.Operation(native.extension_library(compiler, native._SOURCES))
print("difference", native.difference(made))
"""


@needs_compiler
@pytest.mark.parametrize(("target", "needed"), [("x86-64-v3", "avx2"), ("x86-64", "sse2")])
def test_a_build_for_a_lesser_processor_computes_the_same(target: str, needed: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    if needed not in INSTRUCTIONS:
        pytest.skip(f"this processor has no {needed}")
    done = subprocess.run(
        [sys.executable, "-c", CHECK, target],
        capture_output=True,
        text=True,
        timeout=600,
        env={"PYTHONPATH": ":".join(sys.path), "MANYTUNE_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.strip().endswith("difference None"), done.stdout + done.stderr
