"""From a wheel to an answer over HTTP, in an environment of its own: `python -m tests.fresh`.

It builds the wheel, installs it with the extra `serve` and the demo's packages, as `docs/install.md` says, goes to
another directory, and does `docs/tutorials/table.md` there. It prints what each part took, and the sizes, and downloads
a gigabyte or more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Do it."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "dist"]
        subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
        (wheel,) = (folder / "dist").glob("*.whl")
        print(f"{wheel.name}: {wheel.stat().st_size >> 10:,} KiB", flush=True)
        venv.create(folder / "environment", with_pip=True)
        python = folder / "environment" / "bin" / "python"
        pip = [python, "-m", "pip", "install", "--quiet", "--quiet"]
        started = time.monotonic()
        subprocess.run([*pip, "-c", ROOT / "constraints.txt", f"{wheel}[serve]"], check=True)
        subprocess.run([*pip, "--no-deps", "-r", ROOT / "demo-packages.txt"], check=True)
        print(
            f"installed in {time.monotonic() - started:.0f} s, {_size(folder / 'environment')} on disk",
            flush=True,
        )
        work = folder / "work"
        work.mkdir()
        for file in (
            ROOT / "docs" / "tutorials" / "table.md",
            ROOT / "tests" / "integration" / "tutorial.py",
        ):
            shutil.copy(file, folder / file.name)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment["MANYTUNE_CACHE"] = str(folder / "cache")
        command = [python, "-P", folder / "tutorial.py", folder / "table.md", work]
        subprocess.run(command, cwd=work, env=environment, check=True)
        print(f"{_size(folder / 'cache')} of converted base, {_size(work)} of run, store and report")


def _size(folder: Path) -> str:
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return f"{sum(path.stat().st_size for path in found) / 1e9:.2f} GB"


if __name__ == "__main__":
    main()
