"""Results for programs."""

from __future__ import annotations

import json

import typer

from manytune.terminal import visible_json


def print_json(result: object) -> None:
    """Print a result as JSON on stdout."""
    typer.echo(visible_json(json.dumps(result, indent=2, ensure_ascii=False)))
