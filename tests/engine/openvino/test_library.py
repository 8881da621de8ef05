"""OpenVINO as it is loaded: its threads."""

import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("openvino", reason="OpenVINO isn't installed; the extra `openvino` brings it")


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="threads have cores of their own on Linux alone"
)
def test_no_thread_is_bound_to_a_core_while_it_computes():
    # Two servers of one thread each, both bound to the first core, had half of their speed.
    script = """
        import contextlib, os, threading
        import torch

        torch.set_num_threads(1)
        from manytune.engine.openvino.native import operation
        from manytune.engine.openvino.products import products

        operation()  # compiled, and compared with its formula in graphs of its own
        made, x = products([torch.ones(1024, 1024)], None), torch.ones(512, 1024)

        def compute():
            for _ in range(30):
                made([x])

        allowed, seen = os.sched_getaffinity(0), set()
        computing = threading.Thread(target=compute)
        computing.start()
        while computing.is_alive():
            for thread in os.listdir("/proc/self/task"):
                with contextlib.suppress(ProcessLookupError):
                    seen.add(frozenset(os.sched_getaffinity(int(thread))))
        print(seen == {frozenset(allowed)}, seen)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True"), done.stdout
