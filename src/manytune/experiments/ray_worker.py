"""What an actor of Ray does: it opens an experiment once, and then runs the trials that it is given.

Ray has chosen its GPU before anything is imported here, and torch is imported after that.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from manytune.errors import ManytuneError
from manytune.terminal import quiet_libraries

if TYPE_CHECKING:
    from manytune.experiments.worker import Work
    from manytune.experiments.workspace import Workspace


@dataclass(frozen=True)
class Opened:
    """How opening an experiment went.

    Attributes:
        where: The machine and the GPU.
        error: Why it failed, in words for people; None if it didn't.
    """

    where: str
    error: str | None = None


class RayWorker:
    """One process that trains, with a base of its own.

    Args:
        work: The file that says what is to be done.
        directory: What paths in the recipe are relative to.
        gpu: Whether it has a GPU. Ray leaves all of them visible to those that asked for none.
    """

    def __init__(self, work: str, directory: str, *, gpu: bool) -> None:
        if not gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._file, self._directory = Path(work), directory
        self._work: Work
        self._workspace: Workspace

    def where(self) -> str:
        """The machine and the GPU."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return f"{socket.gethostname()}, GPU {visible}" if visible else socket.gethostname()

    def open(self) -> Opened:
        """Load the base and the rows."""
        from manytune.experiments.worker import Work, open_for

        quiet_libraries()
        try:
            os.chdir(self._directory)
            self._work = Work.from_json(self._file.read_text(encoding="utf-8"))
        except OSError as error:
            where = f"{error.filename}: {(error.strerror or str(error)).lower()}"
            return Opened(self.where(), f"{where}. Every machine has to see it under the same path.")
        try:
            self._workspace = open_for(self._work)
        except ManytuneError as error:
            return Opened(self.where(), str(error))
        return Opened(self.where())

    def run(self, place: int) -> str | None:
        """Run a trial of the list.

        Returns:
            Why that failed, in words for people; None if it didn't.
        """
        from manytune.experiments.worker import run_alone

        try:
            run_alone(self._workspace, self._work.phase, self._work.trials[place])
        except ManytuneError as error:
            return str(error)
        return None
