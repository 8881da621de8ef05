"""Commands in a process of their own, and which model libraries it has imported after each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

# Many commands in one process, since starting one takes longer than a command.
_SCRIPT = """
import contextlib, io, json, sys
from manytune.cli.main import build_app
results = []
for arguments in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            build_app()(arguments, prog_name="manytune")
        except SystemExit as end:
            code = end.code
    loaded = sorted({"torch", "transformers", "peft", "datasets", "accelerate", "pandas"} & set(sys.modules))
    results.append(
        {
            "said": " ".join(said.getvalue().split()),
            "code": code,
            "loaded": loaded,
            "packages": sorted({name.partition(".")[0] for name in sys.modules}),
            "modules": len(sys.modules),
        }
    )
    if loaded:
        break
print(json.dumps(results))
"""


@dataclass(frozen=True)
class Ran:
    """A command's end.

    Attributes:
        said: What it printed, on stdout and stderr.
        code: Its exit status.
        loaded: The model libraries that are imported by then.
        packages: All packages that are.
        modules: How many modules that is.
    """

    said: str
    code: int
    loaded: list[str]
    packages: list[str]
    modules: int


def run_each(commands: Sequence[Sequence[str]]) -> list[Ran]:
    """Run commands one after the other, up to the first that imports a model library."""
    ran = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps(list(map(list, commands)))],
        capture_output=True,
        text=True,
        check=True,
    )
    return [Ran(**found) for found in json.loads(ran.stdout)]
