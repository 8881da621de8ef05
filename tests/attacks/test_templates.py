"""Whatever template somebody writes, and whatever is in a row, a text comes of it, or a refusal."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tests.attacks.mutation import cases, hostile

from manytune.data.rendering import compile_part, render_part
from manytune.errors import TemplateError

FIELDS = ["text", "items", "number", "nested", "missing"]
FILTERS = [
    "trim",
    "upper",
    "length",
    "list",
    "join('x')",
    "join(text)",
    "tojson",
    "string",
    "int",
    "float",
    "abs",
    "batch(3)",
    "batch(number, 0)",
    "slice(number)",
    "center(number)",
    "indent(number)",
    "replace('', text)",
    "replace('a', text * 9)",
    "sum(start=[])",
    "sort",
    "unique",
    "map('upper')",
    "map(attribute='x')",
    "select",
    "groupby(0)",
    "format(text)",
    "dictsort",
    "first",
    "last",
    "random",
    "reverse",
    "round(number)",
    "wordwrap(1)",
    "truncate(9)",
    "xmlattr",
    "urlize",
    "pprint",
    "safe",
    "filesizeformat",
    "attr('__class__')",
    "default(text)",
    "items",
    "striptags",
    "title",
    "wordcount",
    "min",
    "max",
    "escape",
]
METHODS = [
    "upper()",
    "join(items)",
    "format(text)",
    "format(**nested)",
    "ljust(number)",
    "zfill(number)",
    "expandtabs(number)",
    "replace('', text)",
    "splitlines()",
    "translate({97: text})",
    "encode()",
    "__class__",
    "mro()",
    "items()",
    "pop()",
    "append(1)",
    "update(a=1)",
    "__init__.__globals__",
    "count('')",
    "rjust(9**9)",
    "to_bytes(number)",
    "bit_length()",
    "as_integer_ratio()",
]
FORMATS = ["%s", "%d", "%c", "%r", "%(a)s", "%999999999d", "%*d", "{:>999999999}", "{0!r}", "{0.__class__}"]
STATEMENTS = [
    "{% include 'x' %}",
    "{% import 'os' as x %}",
    "{% extends text %}",
    "{% raw %}",
    "{% do 1 %}",
    "{% break %}",
]
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "and", "or", "is", "not in"]


def expression(draw: random.Random, depth: int = 3) -> str:
    """A template's expression, of anything with anything."""
    if depth == 0 or draw.random() < 0.15:
        return draw.choice(
            [
                *FIELDS,
                "9",
                "3000000000",
                "'a'",
                "''",
                "1.5",
                "1e300",
                "none",
                "true",
                "[1, 2]",
                "{'a': 1}",
                "loop",
                "self",
                "range(9)",
            ]
        )
    inner = expression(draw, depth - 1)
    shape = draw.randrange(9)
    if shape == 0:
        return f"({inner}) {draw.choice(OPERATORS)} ({expression(draw, depth - 1)})"
    if shape == 1:
        return f"({inner})|{draw.choice(FILTERS)}"
    if shape == 2:
        return f"({inner}).{draw.choice(METHODS)}"
    if shape == 3:
        return f"({inner})[{expression(draw, depth - 1)}]"
    if shape == 4:
        return f"({inner})[{draw.choice(['::-1', ':3', '-1', '::0', 'number:'])}]"
    if shape == 5:
        return f"range({inner})|list"
    if shape == 6:
        return f"({inner}) if ({expression(draw, depth - 1)}) else 'b'"
    if shape == 7:
        return f"'{draw.choice(FORMATS)}'.format({inner})"
    return f"('{draw.choice(FORMATS)}' % ({inner}))"


def template(draw: random.Random, depth: int = 3) -> str:
    """Text, expressions, loops, macros and whatever else Jinja has."""
    inner = template(draw, depth - 1) if depth else "x"
    shape = draw.randrange(9 if depth else 2)
    if shape == 0:
        return draw.choice(["a", "\n", "{", "}}", "{%", "{{", "<|im_end|>", "\x00", "{# ", "{{ text }}"])
    if shape == 1:
        return "{{ " + expression(draw) + " }}"
    if shape == 2:
        return (
            "{% for a in " + expression(draw) + draw.choice([" %}", " recursive %}"]) + inner + "{% endfor %}"
        )
    if shape == 3:
        return (
            "{% if "
            + expression(draw)
            + " %}"
            + inner
            + "{% else %}"
            + template(draw, depth - 1)
            + "{% endif %}"
        )
    if shape == 4:
        return "{% set x = " + expression(draw) + " %}" + inner + "{{ x }}"
    if shape == 5:
        return (
            "{% macro f(n) %}"
            + inner
            + "{{ f(n) }}" * draw.randrange(3)
            + "{% endmacro %}{{ f("
            + expression(draw, 1)
            + ") }}"
        )
    if shape == 6:
        return inner * draw.choice([2, 5]) + template(draw, depth - 1)
    if shape == 7:
        return (
            draw.choice(
                [
                    "{% include 'x' %}",
                    "{% import 'os' as x %}",
                    "{% extends text %}",
                    "{% raw %}",
                    "{% do 1 %}",
                    "{% break %}",
                ]
            )
            + inner
        )
    return (
        "{% set x %}" + inner + "{% endset %}{% filter " + draw.choice(FILTERS) + " %}{{ x }}{% endfilter %}"
    )


def row(draw: random.Random) -> dict[str, Any]:
    """A row as people have it, or with values that nobody expects."""
    usual = {
        "text": "ab\n" * 300,
        "items": list(range(300)),
        "number": 3_000_000_000,
        "nested": [[1, 2]] * 300,
    }
    return {name: hostile(draw) if draw.random() < 0.3 else value for name, value in usual.items()}


@pytest.mark.timeout(900)
def test_any_template_gives_text_or_is_refused() -> None:
    rendered = refused = 0
    for case, draw in cases(120):
        text = template(draw)
        try:
            compile_part("prompt", text)
            made = render_part("prompt", text, row(draw))
        except TemplateError as error:
            assert len(str(error)) < 5000, (case, len(str(error)))
            refused += 1
            continue
        except BaseException as error:
            raise AssertionError(
                f"case {case}: {type(error).__name__}: {str(error)[:500]}\n{text[:2000]}"
            ) from error
        assert isinstance(made, str) and made, case
        rendered += 1
    assert rendered and refused
    print(f"\n{rendered + refused} templates: {rendered} rendered, {refused} refused")
