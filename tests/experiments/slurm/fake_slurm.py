"""A Slurm of one machine: `sbatch` runs the jobs it gets, one after the other, before it answers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_SBATCH = """\
import os, shlex, subprocess, sys
from pathlib import Path

root = Path(os.environ["FAKE_SLURM"])
(root / "calls").open("a").write(shlex.join(sys.argv[1:]) + "\\n")

def options_of(words):
    found = {}
    while words and words[0].startswith("--"):
        name, _, value = words.pop(0).partition("=")
        found[name] = value
    return found

words = sys.argv[1:]
given = options_of(words)
script, *arguments = words
options = {}
for line in Path(script).read_text().splitlines():
    if line.startswith("#SBATCH "):
        options |= options_of(shlex.split(line)[1:])
options |= given

if (root / "refuses").is_file():
    sys.exit("sbatch: error: Batch job submission failed: Invalid account")
job = str(100 + len(list(root.glob("*.status"))))
spooled = root / f"{job}.sh"
spooled.write_text(Path(script).read_text())
kind, _, before = options.get("--dependency", "").partition(":")
if kind == "afterok" and (root / f"{before}.status").read_text() != "0":
    (root / f"{job}.status").write_text("cancelled")
    print(job)
    sys.exit()

places = []
for part in options.get("--array", "").partition("%")[0].split(","):
    first, _, last = part.partition("-")
    places += [str(place) for place in range(int(first), int(last or first) + 1)] if part else [""]
worst = 0
for place in places:
    task = f"{job}_{place}" if place else job
    log = options["--output"].replace("%A", job).replace("%a", place).replace("%j", job).replace("%%", "%")
    variables = {**os.environ, "SLURM_JOB_ID": job, "SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": place}
    if "--cpus-per-task" in options:
        variables["SLURM_CPUS_PER_TASK"] = options["--cpus-per-task"]
    for restarts in range(99):
        variables["SLURM_RESTART_COUNT"] = str(restarts)
        with open(log, "a") as file:
            status = subprocess.call(
                ["bash", spooled, *arguments], cwd=options["--chdir"], env=variables, stdout=file, stderr=file
            )
        requeued = root / f"{task}.requeued"
        if not requeued.is_file():
            break
        requeued.unlink()
    worst = max(worst, status)
(root / f"{job}.status").write_text(str(worst))
print(f"{job};cluster1")
"""
_SCONTROL = """\
import os, sys
from pathlib import Path

assert sys.argv[1] == "requeue"
(Path(os.environ["FAKE_SLURM"]) / f"{sys.argv[2]}.requeued").touch()
"""
_SQUEUE = """\
import os
from pathlib import Path

print(Path(os.environ["FAKE_SLURM"], "queue").read_text(), end="")
"""


class FakeSlurm:
    """Its commands, in a directory of their own.

    Args:
        root: Where the commands and what they leave are.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commands = root / "bin"
        self.commands.mkdir(parents=True)
        for name, text in (("sbatch", _SBATCH), ("scontrol", _SCONTROL), ("squeue", _SQUEUE)):
            path = self.commands / name
            path.write_text(f"#!{sys.executable} -IS\n{text}")
            path.chmod(0o755)
        self.queue("")

    @property
    def environment(self) -> dict[str, str]:
        """What finds it."""
        return {"FAKE_SLURM": str(self.root), "PATH": f"{self.commands}:{os.environ['PATH']}"}

    def queue(self, jobs: str) -> None:
        """Let `squeue` print these."""
        (self.root / "queue").write_text(jobs)

    def refuse(self) -> None:
        """Let `sbatch` take nothing."""
        (self.root / "refuses").touch()

    @property
    def calls(self) -> list[str]:
        """What `sbatch` was given; a word for `sbatch` itself isn't part of it."""
        path = self.root / "calls"
        return path.read_text().splitlines() if path.is_file() else []
