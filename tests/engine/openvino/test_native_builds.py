"""What compilers make of the adapters' operation for processors without AVX-512, and without AVX2, is right, too.

Each build is used in a process of its own: operations of one name are registered once a process.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.kernels.machine import assert_build_is_right, lesser_processors, needs_compiler

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
@lesser_processors
def test_a_build_for_a_lesser_processor_computes_the_same(target: str, needed: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    assert_build_is_right(CHECK, target, needed, tmp_path)
