"""A task of the array: one trial, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from manytune.errors import ManytuneError, RunError
from manytune.experiments.failures import Failure, forget_failure, keep_failure
from manytune.experiments.finished import is_done
from manytune.experiments.runner import work_file
from manytune.experiments.trials import Phase
from manytune.experiments.worker import Work, open_for, run_alone
from manytune.terminal import quiet_libraries


def run_task(directory: Path, phase: Phase, place: int) -> None:
    """Run a trial of the list, unless it is done; one that was interrupted is resumed.

    Raises:
        RunError: The list is shorter, or the trial failed; how is kept next to the records.
        ManytuneError: The experiment can't be opened.
    """
    work = Work.from_json(work_file(directory, phase).read_text(encoding="utf-8"))
    if place >= len(work.trials):
        raise RunError(
            f"{work_file(directory, phase)}: has {len(work.trials)} trials, and this is task {place}"
        )
    trial = work.trials[place]
    if is_done(directory, phase, trial, work.question, ranks=work.ranks):
        return
    try:
        run_alone(open_for(work), phase, trial)
    except ManytuneError as error:
        keep_failure(directory, trial.name, Failure(str(error)))
        raise
    forget_failure(directory, trial.name)


def main() -> None:
    """Entry point; the arguments are the experiment's directory, the phase, and the trial's place in its list."""
    quiet_libraries()
    directory, phase, place = sys.argv[1:]
    try:
        run_task(Path(directory), Phase(phase), int(place))
    except ManytuneError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
