"""The examples run as they are, and learn."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
TRAINED_WITH = ["accelerate_loop.py", "bare_loop.py", "hf_trainer.py", "seq2seq_trainer.py"]


@pytest.mark.parametrize("name", TRAINED_WITH)
def test_a_manytune_model_trains_with(name: str) -> None:
    ran = subprocess.run(
        [sys.executable, name],
        cwd=EXAMPLES,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    found = re.search(r"^loss: ([\d.]+) -> ([\d.]+)$", ran.stdout, re.MULTILINE)
    assert found is not None, ran.stdout
    assert float(found[2]) < 0.8 * float(found[1])
    assert "different" not in ran.stdout
