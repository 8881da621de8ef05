"""What promptsource does with a template: fill the whole, then cut it at the separator."""

from __future__ import annotations

from collections.abc import Mapping

import jinja2


def apply(jinja: str, answer_choices: str | None, row: Mapping[str, object]) -> list[str]:
    """Return the input and the target, or fewer parts if the template doesn't apply to the row."""
    environment = jinja2.Environment()
    values = {
        key: value.replace("|||", "<pipes>") if isinstance(value, str) else value
        for key, value in row.items()
    }
    if answer_choices is not None:
        rendered = environment.from_string(answer_choices).render(**values)
        values["answer_choices"] = [choice.strip() for choice in rendered.split("|||")]
    parts = environment.from_string(jinja).render(**values).split("|||")
    return [part.replace("<pipes>", "|||").strip() for part in parts]
