"""The page's list of contents: the sections that it has, in their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def contents(parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The anchor and the title of each section.

    Args:
        parts: The charts and tables of the page by name; what is empty has no section.
    """
    sections = [
        ("setup", "Setup", parts["setup"]),
        ("ranks", "Ranks", parts["ranks"]),
        ("scores", "Scores", True),
        ("classes", "Labels", parts["mcnemar"] or parts["confusions"]),
        ("gains", "What the gain cost", parts["gains"] or parts["share_table"]),
        ("forgotten", "What was forgotten", parts["changes"]),
        ("cost", "Quality and cost", parts["cost_table"]),
        ("loss", "Loss", parts["losses"]),
        *(
            (f"course-{number}", f"{label} while training", True)
            for number, (label, _) in enumerate(parts["courses"], 1)
        ),
        ("documents", "Documents", True),
        ("provenance", "How this was made", True),
    ]
    return [(anchor, title) for anchor, title, is_there in sections if is_there]
