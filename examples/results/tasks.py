"""Write the rows of three tasks: facts to text and text to facts (E2E's devset.csv), and a paper's title (ACLSum)."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path

from manytune.demo.aclsum import read_papers

FACTS = {"test": slice(0, 40), "validation": slice(40, 60), "train": slice(60, None)}
TEXTS = {"test": None, "validation": 2, "train": 8}  # of each set of facts
PAPERS = {"test": 40, "validation": 40, "train": None}


def write(name: str, rows: Sequence[dict[str, str]]) -> None:
    """Write the rows of one part of a task."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(f"tasks/{name}.jsonl").write_text(text, encoding="utf-8")


texts: dict[str, list[str]] = {}
with open("devset.csv", encoding="utf-8", newline="") as file:
    for row in csv.DictReader(file):
        texts.setdefault(row["mr"], []).append(row["ref"])
facts = sorted(texts)
random.Random(0).shuffle(facts)
Path("tasks").mkdir(exist_ok=True)
for part, chosen in FACTS.items():
    pairs = [{"mr": mr, "ref": ref} for mr in facts[chosen] for ref in texts[mr][: TEXTS[part]]]
    write(f"describe-{part}", pairs)
    first = {pair["mr"]: pair for pair in reversed(pairs)}
    write(f"facts-{part}", list(first.values()) if part == "test" else pairs)
    papers = read_papers(part)[: PAPERS[part]]
    write(f"title-{part}", [{"paper": one.name, "title": one.title, **one.answers} for one in papers])
