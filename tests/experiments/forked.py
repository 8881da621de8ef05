"""Processes that begin as copies of this one, where a new one would import for seconds."""

from __future__ import annotations

import multiprocessing
import runpy
import sys
from collections.abc import Sequence
from typing import Any


class Forked:
    """In place of `subprocess.Popen`, for `python -m MODULE ARGUMENTS`."""

    def __init__(self, command: Sequence[str], **_: Any) -> None:
        python, option, module, *arguments = command
        assert (python, option) == (sys.executable, "-m")
        self._process = multiprocessing.get_context("fork").Process(target=_run, args=(module, *arguments))
        self._process.start()

    def wait(self) -> int:
        """Its exit status."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def terminate(self) -> None:
        """As `subprocess.Popen`'s."""
        self._process.terminate()


def _run(module: str, *arguments: str) -> None:
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)  # it runs from its first line
    runpy.run_module(module, run_name="__main__", alter_sys=True)
