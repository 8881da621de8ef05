"""How several processes fail: one of them says why, and the others end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed

from manytune.atomic import write_error
from manytune.errors import ManytuneError, RunError
from manytune.training.distributed.processes import Processes

# When a process dies, the others' exchanges fail, too. The launcher ends them in less than this.
_GRACE = 5.0


@contextmanager
def said_once(processes: Processes) -> Iterator[None]:
    """Let an error of the block through in the process that fails first, and end the others in silence.

    An error that isn't of manytune may be that another process is gone; the launcher, who sees that, has a few seconds
    to end this one before it says so.

    Args:
        processes: Those that train together.

    Raises:
        RunError: The others can't be reached any more, and no launcher has ended this process.
        SystemExit: Another one has failed before.
    """
    try:
        yield
    except KeyboardInterrupt:
        if processes.is_first and not processes.by_manytune:
            raise
        raise SystemExit(130) from None
    except Exception as error:
        if processes.count == 1:
            raise
        is_own = isinstance(error, ManytuneError) or write_error(error) is not None
        if not is_own:
            time.sleep(_GRACE)
        if not processes.fails_first():
            raise SystemExit(1) from None
        if _is_lost(error):
            raise RunError(
                f"process {processes.rank} of {processes.count} can't reach the others any more, so one of them has "
                f"ended, or its machine or network has: {str(error).splitlines()[0]}. --resume continues after the "
                "last checkpoint."
            ) from error
        raise


def _is_lost(error: Exception) -> bool:
    """Whether an exchange failed: torch has a class for NCCL's errors and the store's, and none for gloo's."""
    return isinstance(error, distributed.DistError) or "/gloo/" in str(error)
