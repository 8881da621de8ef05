"""The demo's data: ACLSum, abstracts of papers with three summaries each, and the paper's own split.

ACLSum (Takeshita et al., NAACL 2024, arXiv 2403.05303) has 250 papers of the ACL Anthology, each with one
sentence on its challenge, one on its approach and one on its outcome, written by experts. The Python package
`aclsum` carries the data. Only its files are read; its code, and what that needs, stays unused.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from manytune.atomic import atomic_write
from manytune.demo.packages import INSTALL
from manytune.errors import DataError

Split = Literal["train", "validation", "test"]

QUESTIONS: Mapping[str, str] = MappingProxyType(
    {
        "challenge": "In one sentence, which challenge does this paper address?",
        "approach": "In one sentence, which approach does this paper take?",
        "outcome": "In one sentence, what is the outcome of this paper?",
    }
)
"""What is asked about each abstract, by aspect."""

# The document comes first and the question after it, so that the three prompts of a paper share a prefix.
PROMPT = "{{ document }}\n\n{{ question }}"
COMPLETION = "{{ answer }}"
GROUP_BY = "paper"
"""Prompt template, completion template and the field that keeps one paper's rows together."""

_PACKAGE = "aclsum"
_FILES: Mapping[Split, str] = {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}


@dataclass(frozen=True)
class Paper:
    """One paper: its abstract, and the expert's answer to each of `QUESTIONS`."""

    name: str
    title: str
    abstract: str
    answers: Mapping[str, str]

    def rows(self) -> list[dict[str, str]]:
        """One flat row a question, with the fields that the templates name."""
        return [
            {
                "paper": self.name,
                "title": self.title,
                "aspect": aspect,
                "document": self.abstract,
                "question": question,
                "answer": self.answers[aspect],
            }
            for aspect, question in QUESTIONS.items()
        ]


def read_papers(split: Split, *, directory: Path | None = None) -> tuple[Paper, ...]:
    """Read one part of ACLSum, in the order of its file.

    Args:
        split: Which part: 100 papers to train, 50 to validate, 100 to test.
        directory: Where the files are; None is the installed package.

    Raises:
        DataError: The package isn't installed, or a line isn't a paper of ACLSum.
    """
    path = (directory or _installed()) / _FILES[split]
    papers = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            answers = {aspect: row["summary"][aspect].strip() for aspect in QUESTIONS}
            papers.append(Paper(row["id"], row["title"], " ".join(row["sentences"]["abstract"]), answers))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                "expected a paper of ACLSum: an object with id, title, summary and sentences; "
                f"found {type(error).__name__}: {error}. Reinstall the package: pip install --no-deps aclsum",
                where=f"{path}:{number}",
            ) from error
    return tuple(papers)


def write_rows(path: Path, papers: Iterable[Paper]) -> None:
    """Write the papers' rows as JSON lines, the way a user's own data would look."""
    rows = (row for paper in papers for row in paper.rows())
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _installed() -> Path:
    """The directory of the data files, found without importing the package."""
    package = importlib.util.find_spec(_PACKAGE)
    for folder in (package.submodule_search_locations or ()) if package else ():
        directory = Path(folder) / "dataset"
        if all((directory / file).is_file() for file in _FILES.values()):
            return directory
    raise DataError(
        f"the demo's data comes from the Python package aclsum, which isn't installed. Run: {INSTALL}"
    )
