"""Reading answers in every division into parts, which must not matter."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from manytune.server.tools.calls import ToolFormat


@dataclass(frozen=True)
class Read:
    """An answer, taken apart."""

    text: str
    calls: tuple[tuple[str, str], ...]
    ids: tuple[str, ...] = ()


def read(form: ToolFormat, parts: Collection[str], tools: Collection[str] = ("add", "clock")) -> Read:
    reader = form.reader(tools)
    found = [*(reader.push(part) for part in parts), reader.finish()]
    calls: list[list[str]] = []
    ids = []
    for delta in (delta for part in found for delta in part.calls):
        if delta.name is not None:
            assert delta.index == len(calls) and delta.id
            calls.append([delta.name, delta.arguments])
            ids.append(delta.id)
        else:
            assert delta.index == len(calls) - 1 and delta.id is None and delta.arguments
            calls[-1][1] += delta.arguments
    return Read("".join(part.text for part in found), tuple((name, text) for name, text in calls), tuple(ids))


def divisions(text: str) -> Iterator[list[str]]:
    """The whole, every division in two, and single characters."""
    yield [text]
    yield list(text)
    for place in range(1, len(text)):
        yield [text[:place], text[place:]]


def check(
    form: ToolFormat, text: str, expected_text: str, *calls: tuple[str, str], tools=("add", "clock")
) -> None:
    """However an answer comes, the same is read of it."""
    for parts in divisions(text):
        found = read(form, parts, tools)
        assert (found.text, found.calls) == (expected_text, calls), parts
        assert len(set(found.ids)) == len(calls)
