"""What an answer must look like, in the form that llguidance compiles: rules in its variant of Lark.

    start: %json {"type": "object"}

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md describes it. Compiling and matching are limited, so
that whoever sends a grammar can't make a server work on it for long.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llguidance import regex_to_lark

from manytune.engine.constraints.json_schema import check_schema, with_limits_of_formats
from manytune.engine.constraints.patterns import check_pattern
from manytune.errors import GrammarError

_LONGEST = 32_768  # characters of a grammar or an expression that a client sends
_MOST_DEFINITIONS = 500  # a chain of some thousands of rules overflows the compiler's stack
_DEFINITION = re.compile(r"^\s*[?!]?[\w-]+\s*(?:\[[^\]]*\])?\s*(?:::\s*\w+)?\s*:", re.MULTILINE)

#: Where JSON may have white space: one blank, or a line break and the next line's indentation. Without a limit a model
#: that is unsure of itself writes blanks to the end of its answer.
_WHITE_SPACE = r" |\n( {0,24}|\t{0,8})"


@dataclass(frozen=True)
class Grammar:
    """Rules for an answer, not compiled yet.

    Attributes:
        start: What the answer is: the right side of a rule.
        rules: Further rules that it names, one a line.
        parts: Whole grammars by name, which a rule refers to as `@name`.
    """

    start: str
    rules: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """What llguidance compiles; equal sources mean equal constraints."""
        # Texts that a grammar forces are left to the model, whose tokens for them may be others than the tokenizer's.
        whole = f'%llguidance {{"no_forcing": true}}\nstart: {self.start}\n{self.rules}\n'
        parts = [{"name": name, "lark_grammar": text} for name, text in self.parts.items()]
        return json.dumps({"grammars": [{"lark_grammar": whole}, *parts]})


def json_rule(schema: Any, where: str = "schema") -> str:
    """The right side of a rule for JSON that is valid against a schema.

    Args:
        schema: A JSON schema.
        where: What to call it in messages.

    Raises:
        GrammarError: It isn't a schema, or has what isn't supported.
    """
    check_schema(schema, where)
    options = {"whitespace_pattern": _WHITE_SPACE}
    return f"%json {json.dumps({'x-guidance': options, **with_limits_of_formats(schema)})}"


def schema_grammar(schema: Any, where: str = "schema") -> Grammar:
    """JSON that is valid against a schema.

    Raises:
        GrammarError: It isn't a schema, or has what isn't supported.
    """
    return Grammar(json_rule(schema, where))


def regex_grammar(pattern: str, where: str = "regex") -> Grammar:
    """Text that a regular expression matches from its beginning to its end.

    Raises:
        GrammarError: It is too long, or repeats too much.
    """
    if not pattern:
        raise GrammarError("expected a regular expression, found an empty string.", where=where)
    _check_length(pattern, where)
    check_pattern(pattern, where)
    return Grammar("ANSWER", f"ANSWER: /{regex_to_lark(pattern, 'd')}/")


def lark_grammar(text: str, where: str = "grammar") -> Grammar:
    """Text that a grammar in llguidance's variant of Lark derives from its rule `start`.

    Raises:
        GrammarError: It is too long, or has too many rules.
    """
    _check_length(text, where)
    definitions = len(_DEFINITION.findall(text))
    if definitions > _MOST_DEFINITIONS or text.count("\n") > 4 * _MOST_DEFINITIONS:
        raise GrammarError(f"expected {_MOST_DEFINITIONS} rules at most, found {definitions:,}.", where=where)
    check_pattern(text, where)
    return Grammar("@answer", parts={"answer": f'%llguidance {{"no_forcing": true}}\n{text}'})


def _check_length(text: str, where: str) -> None:
    if len(text) > _LONGEST:
        raise GrammarError(f"expected {_LONGEST:,} characters at most, found {len(text):,}.", where=where)
