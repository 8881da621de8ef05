"""What answers on the command line must look like: a JSON schema in a file, or a regular expression."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from manytune.errors import DataError, reason_of

if TYPE_CHECKING:
    from manytune.engine.constraints.grammar import Grammar

_LARGEST = 4 << 20  # bytes of a file


def grammar_of(json_schema: Path | None, regex: str | None) -> Grammar | None:
    """The grammar that is asked for; None for none.

    Raises:
        DataError: The file can't be read as JSON.
        GrammarError: The schema or the expression isn't supported.
    """
    from manytune.engine.constraints.grammar import regex_grammar, schema_grammar

    if json_schema is not None and regex is not None:
        raise typer.BadParameter("give one of --json-schema and --regex", param_hint="--regex")
    if json_schema is not None:
        return schema_grammar(_read(json_schema), json_schema.name)
    return None if regex is None else regex_grammar(regex, "--regex")


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"expected a JSON schema of {_LARGEST:,} bytes at most", where=str(path))
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the JSON schema can't be read: {reason_of(error)}", where=str(path)) from error
