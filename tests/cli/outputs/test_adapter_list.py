"""A line for each adapter, in any width."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from manytune.cli.outputs.adapter_list import age, list_lines, main_score

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)


def entry(*names: str, method: str = "lora", nbytes: int = 1_840_000, **scores: float) -> Any:
    manifest = SimpleNamespace(method=method, scores=scores, created="2026-11-27T11:00:00Z")
    return SimpleNamespace(
        names=names, digest="0123456789abcdef" * 4, nbytes=nbytes, manifest=manifest, path=Path("x")
    )


ENTRIES = [
    entry("support-tickets", "current", validation_loss=1.23456, rouge1=0.41249, rouge2=0.2),
    entry("user/a-name-that-is-rather-long-as-names-from-a-hub-are", method="trainable-tokens", nbytes=9_000),
    entry(nbytes=2_048_576_000, validation_loss=2.0),
]


def test_a_line_has_name_method_size_main_score_and_age() -> None:
    assert list_lines(ENTRIES[:1], width=80, now=NOW) == [
        "name                      method     size  score          age",
        "support-tickets, current  lora    1.84 MB  rouge1 0.4125  3 d",
    ]


def test_names_are_shortened_to_the_width_and_left_whole_for_programs() -> None:
    assert list_lines(ENTRIES, width=80, now=NOW) == [
        "name                       method                   size  score              age",
        "support-tickets, current   lora                  1.84 MB  rouge1 0.4125      3 d",
        "user/a-name-that-is-rath…  trainable-tokens      0.01 MB                     3 d",
        "0123456789ab               lora              2,048.58 MB  validation_loss 2  3 d",
    ]
    whole = list_lines(ENTRIES, width=None, now=NOW)
    assert whole[2].startswith("user/a-name-that-is-rather-long-as-names-from-a-hub-are  trainable-tokens")


@pytest.mark.parametrize("width", [60, 70, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(map(len, list_lines(ENTRIES, width=width, now=NOW))) <= width


def test_the_main_score_is_the_first_of_answers_or_the_validation_loss() -> None:
    assert main_score(ENTRIES[0].manifest) == "rouge1 0.4125"
    assert main_score(ENTRIES[1].manifest) == ""
    assert main_score(ENTRIES[2].manifest) == "validation_loss 2"


@pytest.mark.parametrize(
    ("ago", "shown"),
    [
        (timedelta(seconds=12), "12 s"),
        (timedelta(minutes=59, seconds=59), "59 min"),
        (timedelta(hours=23), "23 h"),
        (timedelta(days=400), "400 d"),
        (timedelta(seconds=-5), "0 s"),
    ],
)
def test_an_age_is_in_its_largest_unit(ago: timedelta, shown: str) -> None:
    assert age((NOW - ago).strftime("%Y-%m-%dT%H:%M:%SZ"), NOW) == shown


def test_what_is_no_time_has_no_age() -> None:
    assert age("yesterday", NOW) == "?"
