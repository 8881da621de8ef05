"""A conversation's answers as token sequences: one sequence for all of them where that is what is served.

The prompt of each answer is what a server would make of the conversation so far. Where it begins with the prompt and
the answer before it, token for token, both answers are parts of one sequence. Where the template writes earlier turns
differently, as those of reasoning models do, the answer begins a sequence of its own. So whatever the template, each
answer is learned exactly once, after exactly the tokens that it will be asked with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """What is given, and what follows it.

    Args:
        prompt: Token ids that are given.
        completion: Token ids that follow.
        given: Ranges of `completion` that bear no loss, in order.
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    given: Spans = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """The whole sequence."""
        return self.prompt + self.completion


def joined(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Join each turn to the one before it if its prompt begins with all of that."""
    found: list[Turn] = []
    for turn in turns:
        before = found[-1] if found else None
        if before is not None and turn.prompt[: len(before.ids)] == before.ids:
            start = len(before.completion)
            between = turn.prompt[len(before.ids) :]
            after = start + len(between)
            later = ((first + after, last + after) for first, last in turn.given)
            found[-1] = Turn(
                before.prompt,
                (*before.completion, *between, *turn.completion),
                _merged((*before.given, (start, after), *later)),
            )
        else:
            found.append(turn)
    return tuple(found)


def not_in(spans: Sequence[tuple[int, int]], places: Sequence[tuple[int, int]]) -> Spans:
    """Return ranges of tokens that overlap none of the ranges of characters.

    Args:
        spans: Ranges of characters.
        places: The range of characters of each token.
    """
    outside = [
        (place, place + 1)
        for place, (first, last) in enumerate(places)
        if not any(first < end and last > start for start, end in spans)
    ]
    return _merged(outside)


def _merged(spans: Iterable[tuple[int, int]]) -> Spans:
    """Ranges in order, those that touch made one, empty ones left out."""
    found: list[tuple[int, int]] = []
    for start, end in spans:
        if start == end:
            continue
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return tuple(found)
