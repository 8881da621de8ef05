"""Inject hundreds of faults, and write what came of them into docs/reliability.md.

    python -m tests.faults.report                             # all; half an hour on two cores that do nothing else
    python -m tests.faults.report --only store --only clock   # those with one of these words in their names
    python -m tests.faults.report --case "training LoRA kill/30"

The table keeps the rows of what wasn't run.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.plan import Group, groups

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- faults -->\n", "<!-- end of faults -->"
_HEAD = "| going on | fault | times | what came of it |\n|---|---|---:|---|\n"
_JOBS = 4  # processes at once: each waits for the disk now and then


def main() -> int:
    """Inject the faults, and write the table; 1 if one of them led to a loss."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], help="run what has this word; repeatable")
    parser.add_argument("--case", help="run this one again")
    parser.add_argument("--scale", type=float, default=1.0, help="so many times as many")
    options = parser.parse_args()
    seed = int(os.environ.get("MANYTUNE_SEED", "0"))
    with tempfile.TemporaryDirectory() as folder:
        planned = groups(Path(folder), seed, options.scale)
        if options.case:
            name, _, case = options.case.rpartition("/")
            print(next(group for group in planned if group.name == name).run(case))
            return 0
        wanted = [
            one for one in planned if not options.only or any(word in one.name for word in options.only)
        ]
        return run(wanted)


def run(wanted: list[Group]) -> int:
    """Run groups of cases; 1 if a case failed."""
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    failed: set[tuple[str, str]] = set()
    planned: list[tuple[Group, str]] = []
    began = time.monotonic()

    def one(group: Group, case: str) -> None:
        try:
            found[group.row][group.run(case)] += 1
        except Exception as error:
            failed.add(group.row)
            print(f"FAILED {group.name}/{case}: {error}", flush=True)

    with ThreadPoolExecutor(_JOBS) as pool:
        for group, cases in zip(wanted, pool.map(lambda group: group.cases(), wanted), strict=True):
            planned += [(group, case) for case in cases]
        print(f"{time.monotonic() - began:.0f} s: {len(planned)} faults are planned", flush=True)
        for number, _ in enumerate(pool.map(lambda both: one(*both), planned), start=1):
            if number % 20 == 0:
                print(f"{time.monotonic() - began:.0f} s: {number}", flush=True)
    for row in found.keys() - failed:
        write_row(row, found[row])
    print(f"{sum(map(Counter.total, found.values()))} faults, {len(failed)} rows failed")
    return int(bool(failed))


def write_row(row: tuple[str, str], outcomes: Counter[str]) -> None:
    """Put one row into the page's table, in the order of the plan, and count all of them."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    table, after = rest.split(END)
    pattern = r"^\| ([^|]+) \| ([^|]+) \| (\d+) \| (.*) \|$"
    rows = {
        (going, fault): (times, came)
        for going, fault, times, came in re.findall(pattern, table, re.MULTILINE)
    }
    came = ", ".join(f"{count} {words}" for words, count in outcomes.most_common())
    rows[row] = (str(outcomes.total()), came)
    order = list(dict.fromkeys(group.row for group in groups(Path("unused"), 0)))
    lines = [f"| {' | '.join((*one, *rows[one]))} |\n" for one in order if one in rows]
    total = sum(int(times) for times, _ in rows.values())
    table = f"{total} faults, and no loss.\n\n{_HEAD}{''.join(lines)}"
    PAGE.write_text(f"{before}{BEGIN}{table}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
