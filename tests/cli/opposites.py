"""A tiny base of words, rows of opposites, and the command line."""

import json
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from manytune.cli.main import build_app

WORDS = [
    "<pad>",
    "<end>",
    "Opposite",
    "of",
    ":",
    "hot",
    "cold",
    "big",
    "small",
    "old",
    "new",
    "wet",
    "dry",
    "is",
    "true",
]
PAIRS = [("hot", "cold"), ("big", "small"), ("old", "new"), ("wet", "dry")]


def rows(*pairs: tuple[str, str]) -> str:
    return "".join(json.dumps({"word": a, "opposite": b, "id": a}) + "\n" for a, b in pairs)


def manytune(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(), list(arguments))


def evaluated(*arguments: str) -> dict[str, Any]:
    result = manytune("evaluate", *arguments, "--max-new-tokens", "4", "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def scores(found: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(r["name"], s["metric"]): s["value"] for r in found["results"] for s in r["scores"]}
