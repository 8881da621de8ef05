"""What answers on the command line must look like: a JSON schema in a file, or a regular expression."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from manytune.errors import DataError

if TYPE_CHECKING:
    from manytune.data.encode import Encoder
    from manytune.engine.constraint import Constraint
    from manytune.engine.constraints.grammar import Grammar
    from manytune.store.base import Base

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


def constraint_of(grammar: Grammar, base: Base, encoder: Encoder) -> Constraint:
    """A grammar compiled for a base's answers, with what a chat template or reasoning puts before them.

    Raises:
        GrammarError: It isn't valid, fits no answer, or is too complex.
    """
    from dataclasses import replace

    from manytune.engine.base_model import end_token_ids
    from manytune.engine.constraints.compiled import CompiledGrammar
    from manytune.engine.constraints.reasoning import before_answer
    from manytune.engine.constraints.spelling import special_tokens
    from manytune.engine.constraints.vocabulary import Vocabulary

    answers, tokenizer = encoder.answers, copy.deepcopy(base.tokenizer)
    before, rules = before_answer(answers.opening, answers.reasoning, special_tokens(tokenizer))
    whole = replace(grammar, start=f"{before} ({grammar.start})", rules="\n".join([*rules, grammar.rules]))
    ends = end_token_ids(base.model, tokenizer) | {encoder.end_id}
    return CompiledGrammar(whole, Vocabulary(tokenizer, base.model.config.get_text_config().vocab_size, ends))


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"expected a JSON schema of {_LARGEST:,} bytes at most", where=str(path))
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the JSON schema can't be read: {error}", where=str(path)) from error
