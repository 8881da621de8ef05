"""Grouped splits that depend on the rows' content and the seed only, and the check that nothing leaked."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from manytune.data.records import Record
from manytune.data.rendering import field_as_text
from manytune.data.templates import Example, Segment
from manytune.errors import DataError, TemplateError

T = TypeVar("T")


def split(
    items: Sequence[T],
    fractions: Mapping[str, float],
    *,
    key: Callable[[T], str],
    seed: int,
    stratum: Callable[[T], str] | None = None,
) -> dict[str, tuple[T, ...]]:
    """Divide items into splits so that items with equal keys stay together.

    Groups are put into the order of a hash of seed and key, and that order is cut where the number of items
    comes nearest to the wanted share. So the order of the items decides nothing, and each split has its share
    to within the size of one group. Inside a split, items keep their order.

    Args:
        items: What to divide.
        fractions: The share of each split, by name; they add up to 1.
        key: The group of an item. `group_key` is the one for examples.
        seed: Another seed gives another division.
        stratum: What each split is to have the same share of, such as an item's label; a group counts as the label of
            whose items it has the largest part. None for a division without regard to it.

    Raises:
        DataError: The fractions aren't shares of a whole, or a split would be empty.

    Example:
        >>> parts = split(range(10), {"train": 0.8, "test": 0.2}, key=str, seed=0)
        >>> {name: len(part) for name, part in parts.items()}
        {'train': 8, 'test': 2}
    """
    _check_fractions(fractions)
    sizes: dict[str, int] = {}
    for item in items:
        sizes[key(item)] = sizes.get(key(item), 0) + 1
    if len(sizes) < len(fractions):
        raise DataError(
            f"too few groups: {len(sizes)} for the splits {', '.join(fractions)}. Rows with the same prompt, or the "
            "same value of group_by, are a group, which is never divided. Give more rows, or set none aside "
            "(data.validation: null)"
        )
    strata = {} if stratum is None else _strata(items, key, stratum)
    names = _assign(sizes, fractions, seed, strata)
    parts = {name: tuple(item for item in items if names[key(item)] == name) for name in fractions}
    for name, part in parts.items():
        if not part:
            raise DataError(
                f"the split {name!r} would be empty: its share is {fractions[name]:g} of {len(items)} rows "
                f"in {len(sizes)} groups, and a group is never divided. Give it a larger share"
            )
    return parts


def group_key(example: Example) -> str:
    """Return what keeps an example together with others: its group, or else its prompt.

    Without groups, rows with the same prompt still go to one split: a model that has seen the answer would be
    tested on its memory. A conversation's prompt is all that comes before its last answer, and equal documents go
    together, too.
    """
    if example.group is not None:
        return f"group {example.group}"
    return f"{'document' if example.is_document else 'prompt'} {key_text(example)}"


def record_key(record: Record, group_by: str | None = None) -> str:
    """Return what keeps a record together with others before there is a template.

    Args:
        record: The row.
        group_by: The field whose value is the key; without one, only rows with equal fields have equal keys.

    Raises:
        DataError: The row has no such field, or it is null or no text.
    """
    if group_by is None:
        return json.dumps(record.fields, sort_keys=True, default=repr)
    try:
        return field_as_text("group_by", group_by, record.fields)
    except TemplateError as error:
        raise DataError(str(error), where=record.where) from error


def prompt_text(segments: Iterable[Segment]) -> str:
    """Return a prompt's text with all white space made single spaces, for comparing prompts."""
    return " ".join(" ".join(segment.text for segment in segments).split())


def key_text(example: Example) -> str:
    """Return the text by which examples are compared: the prompt's, or all of a document."""
    return example.completion if example.is_document else prompt_text(example.segments)


@dataclass(frozen=True)
class Leak:
    """One prompt that occurs in more than one split.

    Args:
        prompt: Its text, white space made single spaces.
        places: Where it occurs first, by split: `{"train": "train.jsonl:17", "test": "test.jsonl:3"}`.
    """

    prompt: str
    places: Mapping[str, str]


def leaks(splits: Mapping[str, Iterable[Example]]) -> tuple[Leak, ...]:
    """Return the prompts that occur in more than one split, in the order of their first occurrence."""
    places: dict[str, dict[str, str]] = {}
    for name, examples in splits.items():
        for example in examples:
            places.setdefault(key_text(example), {}).setdefault(name, example.where)
    return tuple(Leak(prompt, found) for prompt, found in places.items() if len(found) > 1)


def _check_fractions(fractions: Mapping[str, float]) -> None:
    shares = ", ".join(f"{name} {fraction:g}" for name, fraction in fractions.items()) or "none"
    if any(not 0 < fraction <= 1 for fraction in fractions.values()):
        raise DataError(f"each split's share must be above 0 and at most 1; found {shares}")
    if not math.isclose(total := sum(fractions.values()), 1, abs_tol=1e-9):
        raise DataError(f"the splits' shares must add up to 1, not {total:g}; found {shares}")


def _strata(items: Sequence[T], key: Callable[[T], str], stratum: Callable[[T], str]) -> dict[str, str]:
    """Return each group's stratum: that of whose items it has the largest part; of several the first by name."""
    found: dict[str, Counter[str]] = {}
    for item in items:
        found.setdefault(key(item), Counter())[stratum(item)] += 1
    whole = sum(found.values(), Counter())
    return {
        group: min(counts, key=lambda one: (-counts[one] / whole[one], one))
        for group, counts in found.items()
    }


def _assign(
    sizes: Mapping[str, int], fractions: Mapping[str, float], seed: int, strata: Mapping[str, str]
) -> dict[str, str]:
    """Return each group's split."""
    order = sorted(sizes, key=lambda group: hashlib.blake2b(f"{seed} {group}".encode()).digest())
    if strata:
        # By how much of its stratum comes before a group: wherever this order is cut, the strata are cut alike.
        whole: Counter[str] = Counter()
        for group in order:
            whole[strata[group]] += sizes[group]
        before: Counter[str] = Counter()
        places = {}
        for group in order:
            places[group] = (before[strata[group]] + sizes[group] / 2) / whole[strata[group]]
            before[strata[group]] += sizes[group]
        order.sort(key=places.__getitem__)
    total = sum(sizes.values())
    names: dict[str, str] = {}
    start, items, wanted = 0, 0, 0.0
    for name, fraction in fractions.items():
        wanted += fraction * total
        end = start
        # Take the next group if the count then comes nearer to what is wanted; in the middle, leave it.
        while end < len(order) and abs(items + sizes[order[end]] - wanted) < abs(items - wanted):
            items += sizes[order[end]]
            end += 1
        names.update(dict.fromkeys(order[start:end], name))
        start = end
    return names
