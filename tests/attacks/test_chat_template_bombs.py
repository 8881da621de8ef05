"""A chat template that comes with somebody else's adapter neither goes on forever nor fills the memory."""

from pathlib import Path
from typing import Any

import jinja2
import pytest
from tests.chat_templates import FAMILIES, tokenizer_of

from manytune.chat_rendering import render_chat
from manytune.data.encoding.encode import Encoder
from manytune.data.templates import Segment
from manytune.errors import StoreError, TemplateError
from manytune.store.tokenizer_files import own_chat_template

HUNDRED = "{% for a in range(100) %}{% for b in range(100) %}{% for c in range(100) %}"
ENDS = "{% endfor %}" * 3
TWICE = "{% set n = namespace(x=['a']) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
LONG = "{% set t = 'ab ' * 1000000 %}"
BOMBS = {
    "a power": "{{ 9**(9**9) }}",
    "a power that isn't printed": "{% if 9**(9**9) > 1 %}{% endif %}",
    "a power as a default": "{% macro f(a=9**(9**9)) %}{% endmacro %}{{ f() }}",
    "rounded to a power": "{{ 1|round(1000000000, 'ceil') }}",
    "a long text": "{{ 'a' * 3000000000 }}",
    "a long text in a list": "{% set x = ['a' * 3000000000] %}",
    "filled up": "{{ 'a'|center(3000000000) }}",
    "filled up by a method": "{{ 'a'.ljust(3000000000) }}",
    "a wide place": "{{ '%3000000000d' % 1 }}",
    "a wide place's width": "{{ '{:{}}'.format('a', 3000000000) }}",
    "nested loops": HUNDRED + "{% for d in range(100) %}{% endfor %}" + ENDS,
    "loops that write": HUNDRED + "x" * 1000 + ENDS,
    "loops without a step of their own": "{% for a in range(99999) %}{% set x = range(99999)|list %}{% endfor %}",
    "loops that search": LONG + "{% for a in range(99999) %}{% set x = 'c' in t %}{% endfor %}",
    "loops that compare": LONG
    + "{% set u = t ~ '' %}{% for a in range(99999) %}{% set x = t == u %}{% endfor %}",
    "loops that copy": LONG + "{% for a in range(99999) %}{% set x = t[1:] %}{% endfor %}",
    "loops that call": LONG + "{% for a in range(99999) %}{% set x = t.upper() %}{% endfor %}",
    "loops that split": LONG + "{% for a in range(99999) %}{% set x = t.split() %}{% endfor %}",
    "loops that divide": f"{{% set h = 0x{'f' * 100_000} %}}"
    "{% for a in range(99999) %}{% set x = h // (h - 1) %}{% endfor %}",
    "a list that holds itself many times": TWICE + "{{ n.x }}",
    "such a list as JSON": TWICE + "{{ n.x|tojson }}",
    "such a list compared": TWICE + "{% if n.x == [n.x] %}{% endif %}",
    "such a list joined": TWICE + "{{ ', '.join(n.x|map('string')) }}",
    "such a list sorted": TWICE + "{{ (n.x + n.x)|sort }}",
    "such a list in a format": TWICE + "{{ '%s' % n.x }}{{ '{}'.format(n.x) }}",
    "such a list in a list's method": TWICE + "{{ [n.x].index([n.x, 1]) }}",
    "a macro that calls itself": "{% macro f(n) %}{{ f(n-1) }}{{ f(n-1) }}{% endmacro %}{{ f(99) }}",
    "a loop that calls itself": "{% for a in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "words": "{{ lipsum(n=1000000) }}",
    "nested too deeply": "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
    "loops nested too deeply": "{% for a in 'a' %}" * 30 + "{% endfor %}" * 30,
    "blocks nested too deeply": "{% if true %}" * 2000 + "{% endif %}" * 2000,
    "a long number": "{{ " + "9" * 10_000 + " }}",
    "longer than a template": "x" * 200_000,
    "a date's width": "{{ strftime_now('%0999999999d') }}",
    "dates without end": "{{ strftime_now('%c' * 9999999) }}",
    "keys": "{{ dict.fromkeys(range(99999), 'x' * 1000)|tojson }}{% for a in range(9) %}"
    + "{% set x = dict.fromkeys(range(99999)) %}" * 3
    + "{% endfor %}",
}
MESSAGES = [{"role": "user", "content": "Hello"}]
EVERYTHING = """{%- macro shout(x, y='!') -%}{{ x|upper ~ y }}{%- endmacro -%}
{%- set ns = namespace(n=0, last=none) -%}
{%- for m in messages -%}
  {%- set ns.n = ns.n + 1 -%}{%- set ns.last = m -%}
  {{- loop.index ~ m.role|title + ': ' + m['content'].strip().split(' ')|join('_') + '\\n' -}}
  {%- if loop.index > 3 -%}{%- break -%}{%- endif -%}
  {%- if m.content is string and 'a' in m.content and m.role in ['user', 'tool'] -%}{{ shout('yes') }}{%- endif -%}
{%- endfor -%}
{{ ns.n }} {{ none }} {{ true }} {{ undefined_name }} {{ [1, 'a', none] }} {{ {'a': 1}.items()|list }} {{ 1.5 * 2 }}
{{ messages[::-1]|map(attribute='role')|list|tojson(indent=2) }} {{ '%s-%05.1f' % ('x', 2.25) }} {{ '{:>4}'.format(7) }}
{{ messages|selectattr('role', 'eq', 'user')|list|length }} {{ 'é<&'|tojson }} {{ 'é<&'|e }} {{ 7 // 2 - 7 % 4 }}
{% generation %}{% set inner = 1 %}{{ inner }}{% endgeneration %}
{{ range(3)|sum }} {{ dict(a=1)|tojson }} {{ dict.fromkeys(['k'], 2) }}
{{ ['b', 'a']|sort|first }} {{ 'a,b'.partition(',') }} {{ messages|default('x')|length }}
{% if documents is none and tools is none and messages|last == ns.last %}same{% endif %}
"""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizer_of("smollm2")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_stopped_with_a_reason_and_no_time_or_memory_spent(bomb: str) -> None:
    with pytest.raises((jinja2.TemplateError, ArithmeticError, ValueError, RecursionError)):
        render_chat(bomb, MESSAGES, {}, add_generation_prompt=True)


@pytest.mark.parametrize("bomb", ["a power", "nested loops", "loops that search", "blocks nested too deeply"])
def test_an_adapter_with_such_a_template_is_refused_by_the_file_where_it_is_opened(
    tmp_path: Path, tokenizer: Any, bomb: str
) -> None:
    file = tmp_path / "chat_template.jinja"
    file.write_text(BOMBS[bomb])
    with pytest.raises(StoreError, match=r"chat_template\.jinja: the adapter's chat template can't write"):
        own_chat_template(tmp_path, {file.name}, tokenizer)


def test_what_only_some_messages_set_off_is_stopped_when_they_come(tokenizer: Any) -> None:
    tokenizer.chat_template = FAMILIES["smollm2"].template + (
        "{% if messages[0].content == 'now' %}" + BOMBS["nested loops"] + "{% endif %}"
    )
    encoder = Encoder(tokenizer, max_length=None)
    assert encoder.prompt_ids([Segment("user", "later")])
    with pytest.raises(TemplateError, match=r"refuses the messages .* it takes more than"):
        encoder.prompt_ids([Segment("user", "now")])


def test_a_conversation_may_take_as_much_as_it_needs() -> None:
    messages = MESSAGES * 20_000
    written = render_chat(FAMILIES["smollm2"].template, messages, {}, add_generation_prompt=True)
    assert written.count("Hello") == 20_000


@pytest.mark.parametrize("template", [*(one.template for one in FAMILIES.values()), EVERYTHING])
def test_what_is_written_is_what_transformers_writes(tokenizer: Any, template: str) -> None:
    conversations: list[list[dict[str, Any]]] = [
        [{"role": "user", "content": "a b  "}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>x</think>b"}],
        [
            *(
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b", "reasoning_content": "r"},
            ),
            {"role": "user", "content": "é < \"'&"},
        ],
    ]
    for messages in conversations:
        for prompt in (True, False):
            expected = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
            )
            found = render_chat(
                template, messages, tokenizer.special_tokens_map, add_generation_prompt=prompt
            )
            assert found == expected
