"""Run every fuzz test with many cases, and write what came of it into docs/reliability.md.

    python -m tests.attacks.report            # all; an hour on two cores that do nothing else
    python -m tests.attacks.report --only recipes --cases 500

The table keeps the rows of tests that weren't run.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- attacks -->\n", "<!-- end of attacks -->"
#: Of each test: what is mutated, how many cases, and where it is.
TESTS = {
    "bodies": (20_000, "tests/attacks/test_bodies.py"),
    "adapters": (10_000, "tests/server/adapters/test_validation_hostile_adapters.py"),
    "templates": (2_000, "tests/attacks/test_templates.py"),
    "recipes": (2_000, "tests/attacks/test_recipes.py"),
    "checkpoints": (2_000, "tests/attacks/test_checkpoints.py"),
}


def main() -> int:
    """Run the tests, and write the table; 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=TESTS, action="append", help="run this alone; repeatable")
    parser.add_argument("--cases", type=int, help="so many cases instead of the usual number")
    options = parser.parse_args()
    failed = False
    for name in options.only or TESTS:
        usual, file = TESTS[name]
        said = run(file, options.cases or usual)
        failed |= said is None
        print(f"{name}: {said or 'failed'}", flush=True)
        if said is not None:
            write_row(name, said)
    return int(failed)


def run(file: str, cases: int) -> str | None:
    """What a test says of so many cases and how long they took; None if it failed."""
    began = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-s",
        "-p",
        "no:cacheprovider",
        "--timeout",
        "36000",
        file,
    ]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "MANYTUNE_CASES": str(cases)}, capture_output=True, text=True
    )
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-1000:], sep="\n")
        return None
    lines = [
        line for line in done.stdout.splitlines() if re.match(r"(\d[\d,]* \w+|continued|memory)\b.*", line)
    ]
    return f"{'; '.join(line for line in lines if ' passed' not in line)} ({time.monotonic() - began:.0f} s)"


def write_row(name: str, said: str) -> None:
    """Put one row into the page's table."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    table, after = rest.split(END)
    rows = dict(re.findall(r"^\| (\w+) \| (.*) \|$", table, re.MULTILINE))
    rows = {**rows, name: said}
    lines = [f"| {one} | {rows[one]} |\n" for one in TESTS if one in rows]
    table = "| mutated | what came of it |\n|---|---|\n" + "".join(lines)
    PAGE.write_text(f"{before}{BEGIN}{table}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
