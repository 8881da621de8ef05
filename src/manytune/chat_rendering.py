"""Chat templates rendered as transformers renders them, within limits: one can come with somebody else's adapter.

What a template can use, and what it writes, is the same as with `apply_chat_template`; nothing is computed while it is
compiled, and all that it does is counted (`template_limits.py`).
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from string import Formatter
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

from manytune.template_limits import (
    CALL,
    TemplateLimitError,
    check_call,
    check_format,
    check_joined,
    check_numbers,
    check_percent,
    check_power,
    check_product,
    check_sum,
    counted,
    limited,
    skim,
    spend,
    weigh,
)

MAX_CHAT_TEMPLATE = 1 << 16
"""Characters of a chat template, twice those of the longest that are in use; compiling them takes a second."""
_STEPS_A_VALUE = 200  # for each text, number and list in the messages and the tools
_COUNTED, _WEIGHED, _SKIMMED, _CONCAT, _FIXED = "#", "?", ":", "~", "="  # no filter has these names
#: Filters that look at a value's elements, and not into them.
_SHALLOW = {"count", "default", "d", "first", "items", "last", "length", "list", "reverse", "safe"}
#: Filters that call something for each element.
_EACH = {"batch", "map", "reject", "rejectattr", "select", "selectattr", "slice"}
#: Filters whose time isn't in proportion to what they are given; no chat template needs them.
_LEFT_OUT = {"pprint", "striptags", "urlize", "wordcount", "wordwrap", "xmlattr"}
_ESCAPES = {"e", "escape", "forceescape", "urlencode"}
_MOST_ESCAPED = 9  # characters of the longest escape of one character
_COMPARING = {
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
    ">",
    "gt",
    "greaterthan",
} | {
    ">=",
    "ge",
    "in",
}


def render_chat(
    template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], **more: Any
) -> str:
    """Return what a chat template makes of messages.

    Args:
        template: Jinja2.
        messages: As chat templates take them, made of text, numbers, lists and dictionaries.
        variables: Values of the template's variables, such as the tokenizer's special tokens.
        more: The same: `tools`, None for none, and `add_generation_prompt`.

    Raises:
        jinja2.TemplateError: It isn't valid, refuses the messages, or takes more than templates may.
        Exception: It is a program, and failed.
    """
    values = {"tools": None, "documents": None, **variables, **more}
    with limited(_STEPS_A_VALUE * (_values_in(messages) + _values_in(values.get("tools")))):
        return _compiled(template).render(messages=[*map(_with_thinking, messages)], **values)


@functools.lru_cache(maxsize=64)
def _compiled(template: str) -> jinja2.Template:
    if len(template) > MAX_CHAT_TEMPLATE:
        raise jinja2.TemplateSyntaxError(
            f"expected at most {MAX_CHAT_TEMPLATE:,} characters, found {len(template):,}", 1
        )
    try:
        return _ENVIRONMENT.from_string(_Metered().visit(_ENVIRONMENT.parse(template)))
    except (RecursionError, MemoryError, SyntaxError, ValueError) as error:
        # Python compiles what Jinja2 makes of it, and has limits of its own.
        raise jinja2.TemplateSyntaxError(
            f"it is nested too deeply, or has too long a number: {error}", 1
        ) from None


def _values_in(value: Any) -> int:
    """How many values there are in one."""
    if isinstance(value, Mapping):
        return 1 + sum(map(_values_in, value.values()))
    return 1 + sum(map(_values_in, value)) if isinstance(value, list | tuple) else 1


def _with_thinking(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """gpt-oss' template reads reasoning under another name."""
    reasoning = message.get("reasoning_content")
    return message if reasoning is None else {"thinking": reasoning, **message}


class _NothingFolded(CodeGenerator):
    """Leaves all computing to the time of rendering, where it is counted."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        raise nodes.Impossible


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks what a model generates, and writes nothing of its own."""

    tags = {"generation"}  # noqa: RUF012  # Jinja2's

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """Jinja2's, without names that Python gives a meaning."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace takes no name with an underscore: {name!r}")
        super().__setitem__(name, value)


def _namespace(*args: Any, **values: Any) -> _Namespace:
    made = _Namespace()
    for name, value in dict(*args, **values).items():
        made[name] = value
    return made


class _Dictionaries:
    """`dict`, and nothing else of the class."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(counted(keys), value)


class _ChatEnvironment(ImmutableSandboxedEnvironment):
    """The environment in which transformers renders chat templates, with everything counted."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})
    code_generator_class = _NothingFolded

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=_written,
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _refuse,
            "strftime_now": _now,
            "dict": _Dictionaries(),
            "namespace": _namespace,
        }
        own = {"join": _join, "tojson": _to_json}
        filters: dict[str, Any] = {**self.filters, **own}
        self.filters = {
            name: _metered(name, made, _before_filter)
            for name, made in filters.items()
            if name not in _LEFT_OUT
        }
        self.filters |= {
            _COUNTED: counted,
            _WEIGHED: weigh,
            _SKIMMED: skim,
            _CONCAT: _concat,
            _FIXED: _fixed,
        }
        tests: dict[str, Any] = self.tests
        self.tests = {name: _metered(name, made, _before_test) for name, made in tests.items()}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute, if it isn't too much."""
        spend(steps=1)
        check_numbers(left, right)
        if operator == "**":
            check_power(left, right)
        elif operator == "*":
            check_product(left, right)
        elif operator == "%" and isinstance(left, str):
            check_percent(left)
            weigh(right, written=True)
        elif operator == "+":
            check_sum(left, right)
        return self.binop_table[operator](left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  # Jinja2's names
        """Call a function, or a method of a text or a list."""
        spend(steps=CALL)
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox puts its own function in format's place
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        given = [*args, *kwargs.values()]
        for one in given:
            skim(one)
        if isinstance(owner, str):
            skim(owner)
            if name in ("format", "format_map"):
                values = kwargs if name == "format" else args[0]
                return _Fields(__self).vformat(owner, args if name == "format" else (), values)
            if name == "join" and args:
                parts = [*counted(args[0])]
                check_joined(owner, parts)
                return owner.join(parts)
            check_call(name, owner, given)
        elif isinstance(owner, list | tuple) and name in ("count", "index"):
            weigh(owner)
            weigh(given)
        return super().call(__context, __obj, *args, **kwargs)


class _Metered(NodeTransformer):
    """Has filters count what Jinja2 lets nobody see: loops, `~`, comparisons, slices and the template's own text."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802  # Jinja2's name
        self.generic_visit(node)
        node.iter = _through(_COUNTED, node.iter)
        return node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Expr:  # noqa: N802
        return _through(_FIXED, nodes.Const(node.data, lineno=node.lineno))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _through(_CONCAT, node.nodes[0], node.nodes[1:])

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:  # noqa: N802
        self.generic_visit(node)
        node.expr = _through(_WEIGHED, node.expr)
        for operand in node.ops:
            operand.expr = _through(_WEIGHED, operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _through(_SKIMMED, node.node)
        return node


def _through(name: str, value: nodes.Node, arguments: Sequence[nodes.Expr] = ()) -> nodes.Expr:
    if isinstance(value, nodes.Const) and name == _WEIGHED:
        return value
    return nodes.Filter(value, name, [*arguments], [], None, None, lineno=value.lineno)


class _Fields(SandboxedFormatter):
    """`str.format` in the sandbox."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        check_format(format_spec)
        found = Formatter.format_field(self, weigh(value, written=True), format_spec)
        spend(characters=len(found))
        return found


def _metered(
    name: str, function: Callable[..., Any], before: Callable[[str, Any, Sequence[Any]], None]
) -> Callable[..., Any]:
    """A filter or a test of which `before` is given the value and the arguments."""

    @functools.wraps(function)
    def plain(value: Any, *args: Any, **kwargs: Any) -> Any:
        before(name, value, [*args, *kwargs.values()])
        return function(value, *args, **kwargs)

    @functools.wraps(function)
    def with_context(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        before(name, value, [*args, *kwargs.values()])
        return function(context, value, *args, **kwargs)

    # Those that ask for it get the context or the environment before the value.
    return plain if getattr(function, "jinja_pass_arg", None) is None else with_context


def _before_filter(name: str, value: Any, arguments: Sequence[Any]) -> None:
    check_call(name, value, arguments)
    if name in _SHALLOW:
        skim(value)
    elif name in _EACH:
        counted(value)
        spend(steps=1)
    elif name not in ("join", "tojson"):
        weigh(value, written=True)
        if name in _ESCAPES and isinstance(value, str):
            spend(characters=_MOST_ESCAPED * len(value))
    for one in arguments:
        skim(one)


def _before_test(name: str, value: Any, arguments: Sequence[Any]) -> None:
    spend(steps=1)
    if name in _COMPARING:
        weigh([value, *arguments])


def _written(value: Any) -> Any:
    return value if type(value) is int else weigh(value, written=True)


@jinja2.pass_context
def _fixed(_: jinja2.runtime.Context, text: str) -> str:
    return text


def _concat(*values: Any) -> str:
    texts = [str(weigh(value)) for value in values]
    spend(characters=sum(map(len, texts)))
    return "".join(texts)


@jinja2.pass_environment
def _join(environment: jinja2.Environment, value: Any, d: Any = "", attribute: Any = None) -> str:
    elements = [*counted(value)]
    if attribute is not None:
        elements = [*environment.call_filter("map", elements, (), {"attribute": attribute})]
    separator, texts = str(d), [str(weigh(element)) for element in elements]
    check_joined(separator, texts)
    return separator.join(texts)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    weigh(value, written=True)
    found = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    spend(characters=len(found))
    return found


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(format: str) -> str:
    if len(format) > 200 or re.search(r"%[^A-Za-z%]*\d{3}", format):
        raise TemplateLimitError(f"the date format {format[:40]!r} is too long")
    return datetime.datetime.now().strftime(format)


_ENVIRONMENT = _ChatEnvironment()
