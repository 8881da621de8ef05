"""`docs/migrating-from-peft.md` against the installed HF PEFT: no option of a method is missing from its tables."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import peft
import pytest

import manytune

PAGE = (Path(__file__).parents[2] / "docs" / "migrating-from-peft.md").read_text()
SHARED = "all"
SOFT_PROMPTS = {"PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"}
KINDS = [
    *("LoraConfig", "AdaLoraConfig", "VeraConfig", "IA3Config", "TrainableTokensConfig"),
    *sorted(SOFT_PROMPTS),
]


def words(text: str) -> set[str]:
    """Names in backticks that can be options; values such as `True` can't."""
    return {name for name in re.findall(r"`(\w+)`", text) if name not in ("True", "False")}


def section(heading: str) -> str:
    return PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]


def rows(text: str) -> list[tuple[str, str]]:
    """First and second cell of each row of a table."""
    cells = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [(row[0].strip(), row[1].strip()) for row in cells[2:]]


def listed(kind: str) -> set[str]:
    """The options that the page names for a configuration, those that it shares with others included."""
    others = rows(section("Options of the other configurations"))
    found = {name for first, names in others if first == SHARED for name in words(names)}
    if kind in SOFT_PROMPTS:
        found |= {name for first, names in others if first == "soft prompts" for name in words(names)}
    if kind in ("LoraConfig", "AdaLoraConfig"):
        found |= {name for first, _ in rows(section("Options of LoraConfig")) for name in words(first)}
    return found | {name for first, names in others if kind in words(first) for name in words(names)}


def options(library: Any, kind: str) -> set[str]:
    return {field.name for field in dataclasses.fields(getattr(library, kind))} - {"peft_type"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_of_hf_peft_is_listed(kind: str) -> None:
    assert options(peft, kind) - listed(kind) == set()


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_listed_exists(kind: str) -> None:
    assert listed(kind) - options(peft, kind) - options(manytune, kind) == set()


def test_every_method_of_hf_peft_that_manytune_has_is_listed() -> None:
    shared = {
        name
        for name in manytune.__all__
        if name.endswith("Config") and hasattr(peft, name) and name[0] != "P" and "Runtime" not in name
    }
    assert shared <= set(KINDS)
