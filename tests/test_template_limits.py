"""A template from somebody else can neither go on forever nor fill the memory."""

from __future__ import annotations

import pytest

from manytune.data.rendering import compile_part, render_part
from manytune.errors import TemplateError

#: Fields of a row as people have them, to build on.
ROW = {
    "text": "ab\n\t" * 1000,
    "items": list(range(1000)),
    "number": 3_000_000_000,
    "nested": [[1, 2]] * 1000,
}
BOMBS = [
    "{{ 9**(9**9) }}",
    "{{ number ** number }}",
    "{% set x = 99999 ** 800 %}{% set x = x * x %}{% set x = x * x %}{{ x * x }}",
    "{{ 'a' * 3000000000 }}",
    "{{ number * 'a' }}",
    "{{ [1] * 3000000000 }}",
    "{{ ((text * 1000) * 1000) * 1000 }}",
    "{{ 'a'|center(3000000000) }}",
    "{{ 'a'.ljust(number) }}",
    "{{ 'a'.zfill(3000000000) }}",
    "{{ text|indent(number) }}",
    "{{ text.expandtabs(9999999) }}",
    "{{ '%3000000000d' % 1 }}",
    "{{ '%*d' % (number, 1) }}",
    "{{ '%.3000000000f' % 1.5 }}",
    "{{ '%3000000000d'|format(1) }}",
    "{{ '{:>3000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=number) }}",
    "{{ text.replace('', text * 100) }}",
    "{{ text|replace('', text * 100) }}",
    "{{ (text * 500)|join(text * 100) }}",
    "{{ (text * 100).join(text * 100) }}",
    "{{ text.translate({97: text * 3000}) }}",
    "{{ text|wordwrap(1, wrapstring=text * 100) }}",
    "{{ [text * 1000, text * 1000, text * 1000, text * 1000, text * 1000]|join }}",
    "{{ nested|sum(start=[]) }}",
    "{{ items|batch(3000000000, 0)|list|length }}",
    "{{ items|slice(3000000000)|list|length }}",
    "{{ items|tojson(3000000) }}",
    "{% for a in items %}{% for b in items %}{% for c in items %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in text %}{% for b in text %}{% for c in text %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in items|map('string') %}{% for b in items %}{% for c in items|map('string') %}{% endfor %}{% endfor %}"
    "{% endfor %}",
    "{% for a in items recursive %}{% if loop.depth < 30 %}{{ loop(items) }}{% endif %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for a in items %}{% for b in items %}" + "x" * 1000 + "{% endfor %}{% endfor %}",
    "{% set x %}{% for a in items %}{% for b in items %}"
    + "x" * 1000
    + "{% endfor %}{% endfor %}{% endset %}a",
    "{% macro f() %}" + "x" * 100_000 + "{% endmacro %}{% for a in items %}{{ f() }}{% endfor %}",
    "{% for a in items %}{{ text * 100 }}{% endfor %}",
    "{% for a in items %}{{ 'x' ~ text * 100 }}{% endfor %}",
    "{{ '%(a)s' * 100000 % {'a': text} }}",
    "{{ ('{0}' * 100000).format(text) }}",
    "{{ a }}" * 30_000,
    "x" * 200_000,
    "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", BOMBS, ids=[f"{number}-{text[:40]}" for number, text in enumerate(BOMBS)])
def test_a_template_that_takes_too_much_is_stopped_before_it_does(text: str) -> None:
    with pytest.raises((TemplateError, RecursionError)):
        render_part("prompt", text, ROW)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ 2 ** 10 }} {{ 2.5 ** 2 }} {{ 3 * 4 }}", "1024 6.25 12"),
        ("{{ '=' * 20 }}{{ ([1, 2] * 2)|length if no is defined }}", "=" * 20),
        ("{{ 'in 123456 of %d, 2 * %s' % (7, 'x') }}", "in 123456 of 7, 2 * x"),
        ("{{ '%5.2f|%-4s|' % (1.5, 'a') }}", " 1.50|a   |"),
        ("{{ '{:>6}|{:,}'.format('a', number) }}", "     a|3,000,000,000"),
        ("{{ '%d' % number }}", "3000000000"),
        ("{{ text|truncate(2000)|length }}", "2000"),
        ("{{ (text * 100)|wordwrap(79)|length > 1 }}", "True"),
        ("{{ text.split('b', 2)|length }} {{ 'a.b'.replace('.', '-') }}", "3 a-b"),
        ("{% for a in items %}{{ loop.index if loop.last }}{% endfor %}", "1000"),
        (
            "{% for a in items if a < 3 %}{{ a }}{{ ', ' if not loop.last }}{% else %}none{% endfor %}",
            "0, 1, 2",
        ),
        ("{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }};{% endfor %}", "a=1;b=2;"),
        ("{% for a in [1, [2, [3]]] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}", "123"),
        ("{% macro f(n) %}{{ n }}{{ f(n - 1) if n }}{% endmacro %}{{ f(5) }}", "543210"),
        ("{{ items|sum }} {{ items|map('string')|join('')|length }}", "499500 2890"),
        ("{{ {'a': 1}|tojson(2) }}", '{\n  "a": 1\n}'),
        ("{%- set x %} a {% endset -%} {{ x|trim }}{{ 'b'|center(5) }}|", "a  b  |"),
    ],
)
def test_what_templates_do_is_as_it_was(text: str, expected: str) -> None:
    assert render_part("prompt", text, ROW) == expected


def test_each_rendering_counts_from_nothing() -> None:
    for _ in range(30):
        assert len(render_part("prompt", "{{ text * 900 }}", ROW)) == 900 * len(str(ROW["text"]))


def test_the_message_says_what_was_stopped() -> None:
    with pytest.raises(
        TemplateError,
        match="prompt template was stopped: it makes texts or lists of more than 16,777",
    ):
        render_part("prompt", "{{ 'a' * number }}", ROW)
    with pytest.raises(TemplateError, match="was stopped: it takes more than 250,000 steps"):
        render_part("prompt", "{% for a in items %}{% for b in items %}{% endfor %}{% endfor %}", ROW)
    with pytest.raises(
        TemplateError, match="line 1, isn't valid: expected at most 131,072 characters, found 200,000"
    ):
        compile_part("prompt", "x" * 200_000)
