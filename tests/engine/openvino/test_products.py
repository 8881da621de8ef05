"""Products timed in OpenVINO."""

import signal
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("openvino", reason="OpenVINO isn't installed; the extra `openvino` brings it")


def test_a_signal_is_handled_after_programs_have_come_and_gone():
    # OpenVINO left a stack for signals behind that it had freed: the next Ctrl-C was a segmentation fault.
    script = """
        import signal
        import torch
        from manytune.engine.openvino.products import products

        first, second = (products([torch.ones(32, 32)], None) for _ in range(2))
        for one in (first, second):
            one([torch.ones(1, 32)])
        del first, one
        del second
        signal.signal(signal.SIGTERM, lambda *_: print("handled"))
        signal.raise_signal(signal.SIGTERM)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "handled"), (
        f"{signal.Signals(-done.returncode).name if done.returncode < 0 else done.returncode}: {done.stderr}"
    )
