"""A part of the tests with another release of a library: `python -m tests.other_releases transformers==5.24.0`.

The release goes into an environment of its own, which takes everything else from the one that this runs in.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

# Models, every method, the engine, trainings and what they keep: where a release of transformers shows.
TESTS = (
    "tests/methods/test_prefix_tuning.py",
    "tests/model/test_activations.py",
    "tests/model/test_loading.py",
    "tests/engine/test_engine.py",
    "tests/engine/test_engine_encoder_decoders.py",
    "tests/engine/test_static_batch.py",
    "tests/training/batches",
    "tests/training/test_run.py",
    "tests/store/test_base_source.py",
    "tests/cli/test_train.py",
)
# Tests call transformers' own models by the names of 5.23, which later releases take with a warning.
OLD_NAMES = "ignore:`past_key_values` is deprecated:FutureWarning"


def main(requirement: str) -> int:
    """Run the tests; gives pytest's exit status."""
    root = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        (own,) = Path(folder).glob("lib/python*/site-packages")
        # As a directory of its own, whose .pth files count too: an editable manytune is in one.
        (own / "shared.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        install = [python, "-m", "pip", "install", "--quiet", "--no-deps", requirement]
        subprocess.run(install, check=True)
        print(f"with {requirement}", flush=True)
        return subprocess.run([python, "-m", "pytest", "-q", "-W", OLD_NAMES, *TESTS], cwd=root).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
