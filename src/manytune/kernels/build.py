"""Compiling the kernels and loading them, once a process; what was compiled before is read from the cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from manytune.caches import cache_directory
from manytune.kernels.check import difference  # with torch: whose OpenMP the library then shares
from manytune.kernels.private_files import keep, kept, private_directory

_SOURCES = Path(__file__).with_name("sources")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++17", "-fPIC", "-shared")
_OFF = "MANYTUNE_KERNELS"
_COMPILE_SECONDS = 300


@dataclass(frozen=True)
class Kernels:
    """The kernels, or why there are none.

    Attributes:
        library: The loaded library; None if there is none.
        note: For people: where the kernels come from, or why there are none.
        used: What they have computed gradients of, such as "attention", since this was last cleared.
    """

    library: ctypes.CDLL | None
    note: str
    used: set[str] = field(default_factory=set)

    def loaded(self) -> ctypes.CDLL:
        """The library, where it is known that there is one."""
        assert self.library is not None, self.note
        return self.library

    def for_gradients(self, of: str) -> ctypes.CDLL:
        """The same, noting what for. A forward pass may be a trial of the model; a backward pass is training."""
        self.used.add(of)
        return self.loaded()

    @property
    def summary(self) -> str:
        """For people: the note, and what the kernels have computed."""
        if self.library is None:
            return self.note
        return (
            f"{self.note}: {' and '.join(sorted(self.used))}"
            if self.used
            else f"{self.note}, for nothing here"
        )


class KernelLoader:
    """Loads the kernels once, when they are first wanted.

    Args:
        kernels: What has been loaded already.

    Attributes:
        ready: Whether there are kernels and they have been loaded.
    """

    def __init__(self, kernels: Kernels | None = None) -> None:
        self._kernels = kernels
        self.ready = kernels is not None and kernels.library is not None

    def load(self) -> Kernels:
        """See `load_kernels`."""
        if self._kernels is None:
            self._kernels = _load()
            self.ready = self._kernels.library is not None
        return self._kernels


_of_this_process = KernelLoader()


def ready() -> bool:
    """Whether the kernels have been loaded; to be asked in each step, and by torch.compile."""
    return _of_this_process.ready


def load_kernels() -> Kernels:
    """Compile the kernels unless that was done before, check them against torch, and load them.

    They are left out, and torch's operations do their work, if there is no C++ compiler, if it fails, if what it made
    computes something else, or if the environment has `MANYTUNE_KERNELS=torch`. The note says so.
    """
    return _of_this_process.load()


def _load() -> Kernels:
    compiler, reason = find_compiler()
    if compiler is None:
        return Kernels(None, f"torch's own ({reason})")
    try:
        library = ctypes.CDLL(str(compiled(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        return Kernels(None, f"torch's own ({first_error(error)})")
    found = difference(library)
    if found is not None:
        return Kernels(None, f"torch's own (what {compiler} made of the C++ kernels is wrong: {found})")
    return Kernels(library, "C++")


def prepare_kernels(model: nn.Module) -> Kernels | None:
    """Load the kernels if they are for such a model: one in float32 on a CPU. None if they aren't."""
    weight = next(model.parameters(), None)
    if weight is None or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return None
    return load_kernels()


def compiled(
    compiler: str,
    flags: tuple[str, ...] = _FLAGS,
    sources: Path | None = None,
    linked: tuple[str, ...] = (),
    headers: tuple[Path, ...] = (),
) -> Path:
    """The shared library that a compiler makes of sources, from the cache or made now.

    What is in the cache is used only if nobody else can have written it, and if it is whole; see `private_files.py`.

    Args:
        compiler: The program.
        flags: Its arguments but for input and output.
        sources: A directory of sources, which find the kernels' headers; None for the kernels' own.
        linked: Arguments behind the sources: libraries.
        headers: More directories in which the sources find headers.

    Raises:
        OSError: The compiler or the cache directory can't be used.
        subprocess.SubprocessError: The compiler fails.
    """
    folders = [_SOURCES, *headers] if sources is None else [_SOURCES, *headers, sources]
    files = sorted((_SOURCES if sources is None else sources).glob("*.cpp"))
    directory = private_directory(cache_directory() / "kernels")
    key = _key(compiler, (*flags, *linked), folders)
    target = kept(directory, key, ".so")
    if target is not None:
        return target
    with tempfile.TemporaryDirectory(
        prefix=".", dir=directory
    ) as made:  # several processes may make it at once
        found = [f"-I{one}" for one in (_SOURCES, *headers)]
        command = [compiler, *flags, *found, *map(str, files), *linked, "-o", f"{made}/kernels.so"]
        _run(command, _COMPILE_SECONDS)
        return keep(Path(made, "kernels.so"), directory, key)


def find_compiler() -> tuple[str | None, str]:
    """A C++ compiler, or None and why none is to be used."""
    if os.environ.get(_OFF) == "torch":
        return None, f"{_OFF}=torch"
    if platform.system() != "Linux":
        return None, f"the C++ kernels are for Linux; this is {platform.system()}"
    named = os.environ.get("CXX", "").split()
    found = next((path for name in [*named[:1], "g++", "c++"] if (path := shutil.which(name))), None)
    return found, "no C++ compiler found: install g++, or name one in CXX"


def _key(compiler: str, arguments: tuple[str, ...], folders: Sequence[Path]) -> str:
    """Changes with the sources, the compiler and the processor, for which the compiler makes its instructions."""
    texts = (_run([compiler, "--version"], 60), " ".join(arguments), platform.machine())
    parts = [*(text.encode() for text in texts), _processor()]
    parts += [path.read_bytes() for one in folders for path in sorted(one.iterdir()) if path.is_file()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _run(command: list[str], seconds: float) -> str:
    """What a command prints."""
    done = subprocess.run(  # noqa: S603  # a compiler, with files of manytune's own
        command,
        check=True,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        env={**os.environ, "LC_ALL": "C"},  # its errors in English, which `first_error` looks for
    )
    return done.stdout


def _processor() -> bytes:
    information = Path("/proc/cpuinfo")
    lines = information.read_bytes().splitlines() if information.exists() else []
    kinds = (b"model name", b"flags", b"Features", b"CPU part")
    return b"\n".join(sorted({line for line in lines if line.startswith(kinds)}))


def first_error(error: OSError | subprocess.SubprocessError) -> str:
    """What a compiler or the system says, in a line."""
    output = getattr(error, "stderr", None) or ""
    said = [line for line in str(output).splitlines() if "error" in line] or [str(error)]
    return f"the C++ kernels don't compile or load: {said[0].strip()}"
