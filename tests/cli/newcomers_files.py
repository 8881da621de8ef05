"""Files as people bring them to `manytune init`: what is in each, and what its recipe is to say."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

Expected = Mapping[str, Any]


def table(header: Sequence[str], rows: Sequence[Sequence[object]], delimiter: str = ",") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([header, *rows])
    return out.getvalue()


_REVIEWS = [
    (f"{n}", f"The film number {n} was {'a joy' if n % 2 else 'a bore'}.", ("pos", "neg")[n % 2])
    for n in range(40)
]
_TICKETS = [
    (
        f"T-{n}",
        f"https://help.example/{n}",
        f"How do I change setting {n}?",
        "billing",
        f"Open page {n}, then save.",
    )
    for n in range(40)
]
_PAPERS = [
    (f"{n}.pdf", f"Title {n}", "We study birds. " * (20 + n), f"Birds were studied {n} times.")
    for n in range(40)
]
_SUMS = [(f"What is {n} and {n + 1}?", 2 * n + 1) for n in range(40)]
_WIDE = [
    [f"value {n}", *(n * k % 7 for k in range(197)), f"Describe customer {n}.", f"A loyal one, {n} years."]
    for n in range(40)
]
_CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"Is {n} even?"},
            {"role": "assistant", "content": "Yes" if n % 2 == 0 else "No"},
        ]
    }
    for n in range(40)
]
_GAPS = [(f"What is {n}?", "" if n == 7 else f"It is {n}.") for n in range(40)]

UNDERSTOOD: dict[str, tuple[str, str | bytes, Expected]] = {
    "classes, with numbers of rows": (
        "reviews.csv",
        table(("id", "review", "sentiment"), _REVIEWS),
        {"task": "classification", "text": "{{ review }}", "label": "sentiment"},
    ),
    "questions as a German Excel saves them": (
        "fragen.csv",
        "\ufeff"
        + table(
            ("Nr", "Frage", "Antwort"), [(n, f"Was ist {n}, genau?", f"Das ist {n}.") for n in range(40)], ";"
        ),
        {"prompt": "{{ Frage }}", "completion": "{{ Antwort }}"},
    ),
    "tickets with an address, a queue and an answer": (
        "tickets.csv",
        table(("Ticket", "URL", "Question", "Category", "Answer"), _TICKETS),
        {"prompt": "{{ Question }}", "completion": "{{ Answer }}"},
    ),
    "papers to summarise, in UTF-16 as Excel's Unicode text": (
        "papers.csv",
        table(("file", "title", "abstract", "summary"), _PAPERS, "\t").encode("utf-16"),
        {"prompt": "{{ abstract }}", "completion": "{{ summary }}"},
    ),
    "sums, whose answers are numbers": (
        "sums.tsv",
        table(("question", "answer"), _SUMS, "\t"),
        {"template": "question-answer"},
    ),
    "chats": ("chats.jsonl", "".join(json.dumps(row) + "\n" for row in _CHATS), {"format": "openai"}),
    "two hundred columns": (
        "wide.csv",
        table(("key", *(f"f{k}" for k in range(197)), "request", "response"), _WIDE),
        {"prompt": "{{ request }}", "completion": "{{ response }}"},
    ),
    "an answer that is empty": (
        "gaps.csv",
        table(("question", "answer"), _GAPS),
        {"template": "question-answer", "on_error": "skip"},
    ),
    "a row with a comma too many": (
        "comma.csv",
        table(("question", "answer"), _GAPS[:7] + _GAPS[8:]) + "What is 40?,It is 40, or so.\r\n",
        {"template": "question-answer", "on_error": "skip"},
    ),
    "ratings": (
        "ratings.csv",
        table(("text", "score"), [(f"It was fine {n}.", f"{n / 7:.2f}") for n in range(40)]),
        {"task": "regression", "label": "score"},
    ),
    "columns with names that templates reserve": (
        "names.csv",
        table(("in", "is"), [(f"a longer text {n}", f"short {n}") for n in range(40)]),
        {"prompt": '{{ fields["in"] }}', "completion": '{{ fields["is"] }}'},
    ),
}

REFUSED: dict[str, tuple[str, str | bytes, str]] = {
    "numbers alone": (
        "numbers.csv",
        table(("a", "b"), [(n, n / 3) for n in range(40)]),
        "no column holds texts (columns: a, b)",
    ),
    "one column of text": (
        "lines.csv",
        table(("review",), [(f"It was fine {n}.",) for n in range(40)]),
        "only the column 'review' holds texts (columns: review), so no answer to learn",
    ),
    "Windows' encoding": (
        "old.csv",
        table(("question", "answer"), [("Où est le café ?", "Là-bas."), ("Et où ?", "Là.")]).encode("cp1252"),
        "old.csv:2: the byte 0xf9 isn't UTF-8 ('ù' in Windows-1252, as Excel writes it); save the file as UTF-8 "
        "(CSV UTF-8 in Excel) (2 lines have such bytes). On a terminal: iconv -f WINDOWS-1252 -t UTF-8 old.csv "
        "> utf8-old.csv",
    ),
    "nothing": ("empty.csv", "", "the file is empty; write rows into it"),
    "a header alone": ("header.csv", "question,answer\n", "a table needs rows below its header"),
    "a workbook": ("book.xlsx", b"PK\x03\x04", "save its sheet as CSV UTF-8"),
    "rows of which none can be read": (
        "broken.jsonl",
        "{\n{\n",
        "no row can be read; the first: the line isn't valid JSON",
    ),
}
