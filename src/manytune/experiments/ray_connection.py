"""Starting a Ray on this machine, or connecting to the cluster that `RAY_ADDRESS` names."""

from __future__ import annotations

import os
from typing import Any

from manytune.errors import RunError

_MODE = "RAY_AUTH_MODE"


def start_ray(**options: Any) -> None:
    """Start Ray here, or connect to the cluster that `RAY_ADDRESS` names.

    Its own processes must come up within seconds, which a machine that is busy with trainings may not manage, so a
    start that fails is tried once more.

    Args:
        options: Those of `ray.init`, such as what a cluster of this machine declares.

    Raises:
        RunError: It failed twice.
    """
    import ray

    for last in (False, True):
        try:
            ray.init(include_dashboard=False, **options)
            return
        except (RuntimeError, OSError, TimeoutError, ValueError, ray.exceptions.RayError) as error:
            ray.shutdown()
            if last:
                raise RunError(
                    f"Ray could not be started, or not be reached: {str(error).rstrip(' .')}.{_hint()}"
                ) from error


def _hint() -> str:
    """What else may keep a cluster from being reached: `ray start` asks for a token where it finds one."""
    if "RAY_ADDRESS" not in os.environ or _MODE in os.environ:
        return ""
    return f" If the cluster asks for a token, as one may that `ray start` started, set {_MODE}=token."
