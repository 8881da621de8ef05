"""A run's reports on their way to `log.jsonl`, and to whoever else wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from manytune.store.run_directory import RunDirectory
from manytune.store.run_log import Report, RunLog
from manytune.training.distributed.processes import Processes


@dataclass(frozen=True)
class Recording:
    """Where reports go.

    Attributes:
        report: Called with each of them; None for a process that has none.
        flush: Sees to it that those so far are on the disk.
    """

    report: Callable[[Report], None] | None
    flush: Callable[[], None]


@contextmanager
def recording(
    directory: RunDirectory,
    *,
    after: int | None,
    report: Callable[[Report], None] | None,
    processes: Processes,
) -> Iterator[Recording]:
    """The first process's reports are for the log, too, and no other process has any.

    Args:
        directory: The run's.
        after: The step that the run continues after; None begins a new log.
        report: Who else wants them.
        processes: Those that train together.
    """
    if not processes.is_first:
        yield Recording(None, lambda: None)
        return
    with RunLog(directory.log_file, after=after) as log:

        def record(event: Report) -> None:
            log.write(event)
            if report is not None:
                report(event)

        yield Recording(record, log.flush)
