"""What jobs ask of Slurm: sbatch's options as `#SBATCH` lines."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from manytune.errors import RunError

_OURS = {
    **dict.fromkeys(("-a", "--array"), "the trials are its tasks"),
    **dict.fromkeys(("-d", "--dependency"), "the jobs wait for one another"),
    **dict.fromkeys(("-o", "--output", "-e", "--error"), "the logs are next to the scripts"),
    **dict.fromkeys(("-D", "--chdir"), "paths in the recipe are relative to this directory"),
    **dict.fromkeys(
        ("--wrap", "--parsable", "--test-only", "-W", "--wait"), "the command needs sbatch's own answer"
    ),
}
_WARNING = 90
"""Seconds before the time limit at which Slurm signals the job; it may do so a minute earlier."""


def directives(
    options: str, *, name: str, log: str, directory: str, cpus: int | None = None, gpus: float | None = None
) -> list[str]:
    """The lines of a script.

    A preempted job goes back to the queue and adds to its log. The user's options replace those that are here.

    Args:
        options: More options, as on sbatch's command line.
        name: The job's name.
        log: The log's path, with sbatch's patterns.
        directory: Where the job runs.
        cpus: Cores of a task; None for what the cluster gives.
        gpus: GPUs of a task; None for what the options say.

    Raises:
        RunError: An option can't be used here, or isn't one, or a part of a GPU is asked for.
    """
    given = _lines(options)
    if gpus is not None and gpus != int(gpus):
        raise RunError(
            f"--gpus-per-trial {gpus:g}: Slurm gives out whole GPUs. Where it has parts of them, ask for those: "
            '--slurm-options "--gres=shard:1".'
        )
    usual = {
        "--job-name": f"={shlex.quote(name)}",
        "--chdir": f"={shlex.quote(directory)}",
        "--output": f"={shlex.quote(log)}",
        "--open-mode": "=append",
        "--requeue": "",
        "--signal": f"=B:USR1@{_WARNING}",
        **({"--cpus-per-task": f"={cpus}"} if cpus else {}),
        **({"--gres": f"=gpu:{int(gpus)}"} if gpus else {}),
    }
    replaced = {_name(line) for line in given}
    if "--no-requeue" in replaced:
        replaced.add("--requeue")
    kept = [option + value for option, value in usual.items() if option not in replaced]
    return [f"#SBATCH {line}" for line in [*kept, *given]]


def asks_for_gpus(options: str) -> bool:
    """Whether options of sbatch ask for a GPU."""
    names = (_name(line) for line in _lines(options))
    return any(name == "-G" or name.startswith(("--gres", "--gpus", "--tres")) for name in names)


def _lines(options: str) -> list[str]:
    """One option a line, with its value."""
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise RunError(f"--slurm-options: can't be read as options: {error}; found {options!r}") from error
    grouped: list[list[str]] = []
    for word in words:
        if word.startswith("-"):
            grouped.append([word])
        elif grouped:
            grouped[-1].append(word)
        else:
            raise RunError(
                f'--slurm-options: expected options of sbatch, such as "--partition=gpu --time=4:00:00"; found {word!r}'
            )
    lines = [shlex.join(words) for words in grouped]
    for line in lines:
        if _name(line) in _OURS:
            raise RunError(
                f"--slurm-options: {_name(line)} is set by manytune: {_OURS[_name(line)]}. Leave it out."
            )
    return lines


def _name(line: str) -> str:
    """The option that a line gives; of short ones the first two characters."""
    word = line.split(" ", 1)[0].split("=", 1)[0]
    return word if word.startswith("--") else word[:2]


def ranges(places: Sequence[int]) -> str:
    """Ascending numbers as sbatch's `--array` takes them: `0,2-5`."""
    parts: list[list[int]] = []
    for place in places:
        if parts and parts[-1][1] == place - 1:
            parts[-1][1] = place
        else:
            parts.append([place, place])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)
