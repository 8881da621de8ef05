"""The vLLM that is installed, and its release."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from manytune.errors import ServeError

#: The release from which vLLM gives each layer the rank and alpha that `rank_pattern` and `alpha_pattern` name.
_PATTERNS = (0, 32)
_ASKED = (
    "import importlib.metadata as m; "
    "print(m.version((m.packages_distributions().get('vllm') or ['vllm'])[0]))"
)
_SECONDS = 60


@dataclass(frozen=True)
class Vllm:
    """An installed vLLM.

    Attributes:
        command: Its executable.
        version: Its release; None if it couldn't be found out.
    """

    command: Path
    version: str | None

    @property
    def reads_patterns(self) -> bool:
        """Whether layers may have ranks and alphas of their own."""
        return reads_patterns(self.version)


def reads_patterns(version: str | None) -> bool:
    """Whether a release of vLLM reads `rank_pattern` and `alpha_pattern`. One that isn't known doesn't."""
    numbers = re.match(r"(\d+)\.(\d+)", version or "")
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= _PATTERNS


def find_vllm(command: str) -> Vllm:
    """The vLLM that a command starts.

    Args:
        command: A name on the PATH, or a path.

    Raises:
        ServeError: There is no such executable; says how to install it.
    """
    found = installed(command)
    if found is None:
        raise ServeError(
            f"{command!r}: there is no vLLM. Install it into an environment of its own (python -m venv vllm && "
            "vllm/bin/pip install vllm) and name its executable: --vllm vllm/bin/vllm."
        )
    return found


def installed(command: str) -> Vllm | None:
    """The same; None if there is none."""
    found = shutil.which(command)
    return None if found is None else Vllm(Path(found).absolute(), _version(Path(found)))


def _version(executable: Path) -> str | None:
    """What the interpreter next to the executable, or in its first line, says of its packages."""
    for python in (executable.with_name("python"), _interpreter(executable)):
        if python is None or not python.is_file():
            continue
        try:
            asked = subprocess.run(  # noqa: S603 - the interpreter that vLLM's own executable names
                [python, "-c", _ASKED], capture_output=True, text=True, timeout=_SECONDS, check=True
            )
        except (OSError, subprocess.SubprocessError):
            continue
        return asked.stdout.strip() or None
    return None


def _interpreter(executable: Path) -> Path | None:
    with executable.open("rb") as file:
        first = file.readline(1024)
    return (
        Path(first[2:].split()[0].decode(errors="replace")) if first[:2] == b"#!" and first.split() else None
    )
