"""How fast the machine is, and whether anything else was using it: a benchmark states both with its figures."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from processes import family

_INSTRUCTIONS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "bf16",
    "i8mm",
    "sve",
)


@dataclass(frozen=True)
class Load:
    """What ran while something was being measured.

    Attributes:
        seconds: Wall time.
        others: Cores that other processes used on average.
    """

    seconds: float
    others: float

    def __str__(self) -> str:
        if self.others < 0.1:
            return f"machine otherwise idle ({self.others:.2f} cores used by others)"
        return (
            f"NOT IDLE: other processes used {self.others:.2f} cores on average; read these figures with care, "
            "and run again alone"
        )


class LoadWatch:
    """Measures, from creation to `stop`, how busy others kept the machine. Linux only; elsewhere it reads 0."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._all, self._own = _busy_seconds(), _own_seconds()

    def stop(self) -> Load:
        """What has run since."""
        wall = time.perf_counter() - self._wall
        others = (_busy_seconds() - self._all) - (_own_seconds() - self._own)
        return Load(wall, max(0.0, others / wall))


def processor() -> str:
    """The processor's name, and what it has of the instructions that decide the speed of products."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in info.read_text().splitlines())
    found: dict[str, str] = {}
    for key, _, value in lines:
        found.setdefault(key.strip(), value.strip())
    has = found.get("flags", found.get("Features", "")).split()
    known = [name for name in _INSTRUCTIONS if name in has]
    return f"{found.get('model name', platform.machine())} ({', '.join(known)})"


def gemm_gflops(size: int = 1024, *, rounds: int = 9) -> float:
    """Float32 matrix products in GFLOP/s; the median of several rounds."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times[2:]) / 1e9


def peak_memory_bytes() -> int:
    """Largest resident size this process has had.

    On Linux from `VmHWM`: `ru_maxrss` starts at the parent's size, so a small child of a large process looks large.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _own_seconds() -> float:
    """Of this process and of those that it has started, running and ended ones."""
    if not Path("/proc/self/stat").exists():
        spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in spent)
    ticks = 0
    for process in family(os.getpid()):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(one) for one in fields[11:15])  # user, system, and both of its ended children
    return ticks / os.sysconf("SC_CLK_TCK")


def _busy_seconds() -> float:
    stat = Path("/proc/stat")
    if not stat.exists():
        return _own_seconds()
    user, nice, system = (int(field) for field in stat.read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")
