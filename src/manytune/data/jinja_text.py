"""The Jinja2 environment of prompt templates: strict about missing fields, and about what becomes text.

In plain Jinja2 `{{ x }}` prints null as "None" and a list as Python source, and so does everything else that makes text
of a value: most filters, `~`, `%` and `+` with text, `format`. Here each of these asks `printable` first. A value can
still be tested, counted, taken apart and looped over, `default` replaces null and NaN, and `tojson` prints an object on
request.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from string import Formatter
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

from manytune.data.printable import UnprintableError, is_absent, present, printable
from manytune.template_limits import (
    CALL,
    MAX_TEMPLATE,
    check_call,
    check_format,
    check_joined,
    check_percent,
    check_power,
    check_product,
    check_sum,
    counted,
    spend,
    weigh,
)

#: Filters that take values apart or choose among them: the value itself needn't have a text form.
_TAKE_ANYTHING = frozenset(
    {
        "attr",
        "batch",
        "count",
        "dictsort",
        "first",
        "groupby",
        "items",
        "last",
        "length",
        "list",
        "map",
        "max",
        "min",
    }
    | {"random", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "sort", "sum", "unique"}
)
#: Of how many arguments after the value other filters make text (None for all); 0 for filters that aren't listed.
_TEXT_ARGUMENTS = {"format": None, "replace": 2}
_CONCAT, _COUNTED, _FIXED = "~", "#", "="  # no filter of a template's author has these names
_PERCENT = "the operator '%'"


class MissingFieldError(jinja2.UndefinedError):
    """A template used a name that isn't there.

    Attributes:
        name: The name.
        siblings: What a nested object holds instead; None at the top level.
    """

    def __init__(self, name: str, siblings: Mapping[str, object] | None) -> None:
        super().__init__(name)
        self.name = name
        self.siblings = siblings


class TemplateText(str):
    """Text that is a template's own, and not of a row."""

    def __str__(self) -> str:
        return self  # Jinja2 makes text of all that is written, and this must be known after that


class _StrictField(jinja2.StrictUndefined):
    """A missing field: any use of it raises, with its name."""

    def __init__(
        self,
        hint: str | None = None,
        obj: Any = jinja2.utils.missing,
        name: str | None = None,
        exc: type[jinja2.TemplateRuntimeError] = jinja2.UndefinedError,
    ) -> None:
        super().__init__(hint, obj, name, exc)
        nested = obj is not jinja2.utils.missing
        if exc is jinja2.UndefinedError and name is not None and (not nested or isinstance(obj, Mapping)):
            siblings = obj if nested else None
            self._undefined_exception = lambda _: MissingFieldError(str(name), siblings)  # type: ignore[assignment]


class TextEnvironment(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox, in which nothing but text, numbers and dates becomes text."""

    intercepted_binops = frozenset({"+", "%", "*", "**"})

    def __init__(self) -> None:
        super().__init__(
            undefined=_StrictField, finalize=_written, keep_trailing_newline=True, autoescape=False
        )
        self.globals.clear()  # a missing field named "dict" or "range" must not be found there
        self.tests |= {"none": is_absent}
        self.filters = {name: _checked(name, function) for name, function in self.filters.items()}
        self.filters |= {
            "default": _default,
            "d": _default,
            "join": _join,
            "tojson": _to_json,
            _CONCAT: _concat,
            _COUNTED: counted,
            _FIXED: _fixed,
        }
        self.filters |= {"choice": _choice, "most_frequent": _most_frequent}  # promptsource's

    def compiled(self, text: str) -> jinja2.Template:
        """Return a template.

        Raises:
            jinja2.TemplateSyntaxError: It isn't valid, or too long.
        """
        if len(text) > MAX_TEMPLATE:
            raise jinja2.TemplateSyntaxError(
                f"expected at most {MAX_TEMPLATE:,} characters, found {len(text):,}", 1
            )
        return self.from_string(_Intercepted().visit(self.parse(text)))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Add, or fill in a format."""
        if operator == "**":
            check_power(left, right)
        elif operator == "*":
            check_product(left, right)
        elif operator == "%" and isinstance(left, str):
            check_percent(left)
            right = _filled_in(right)
        elif operator == "+":
            if isinstance(left, str) or isinstance(right, str):
                printable(left, "the operator '+'"), printable(right, "the operator '+'")
            check_sum(left, right)
        return self.binop_table[operator](left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  # Jinja2's names
        """Call a function; `format` and `join` are the methods of text that take other values."""
        spend(steps=CALL + (len(args[0]) if args and isinstance(args[0], Sized) else 0))
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox puts its own function in format's place
        text, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(text, str) and name == "format":
            return _Fields(__self).vformat(text, args, kwargs)
        if isinstance(text, str) and name == "format_map" and len(args) == 1:
            return _Fields(__self).vformat(text, (), args[0])
        if isinstance(text, str) and name == "join" and args:
            elements = [printable(element, "the method 'join'") for element in _elements(args[0])]
            check_joined(text, elements)
            args = (elements, *args[1:])
        elif isinstance(text, str):
            check_call(name, text, [*args, *kwargs.values()])
        return super().call(__context, __obj, *args, **kwargs)


class _Intercepted(NodeTransformer):
    """Makes `a ~ b` a filter, since Jinja2 lets nobody see that operator.

    By others the steps of loops, and the fixed text that loops and macros repeat, are counted.
    """

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802  # Jinja2's name
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, _COUNTED, [], [], None, None, lineno=node.lineno)
        return node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Filter:  # noqa: N802  # Jinja2's name
        return nodes.Filter(
            nodes.Const(node.data, lineno=node.lineno), _FIXED, [], [], None, None, lineno=node.lineno
        )

    def visit_Output(self, node: nodes.Output) -> nodes.Output:  # noqa: N802  # Jinja2's name
        self.generic_visit(node)
        node.nodes = [
            self.visit_TemplateData(nodes.TemplateData(one.value, lineno=one.lineno))
            if isinstance(one, nodes.Const) and isinstance(one.value, str)
            else one
            for one in node.nodes
        ]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802  # Jinja2's name
        self.generic_visit(node)
        first, *others = node.nodes
        return nodes.Filter(first, _CONCAT, others, [], None, None, lineno=node.lineno)


class _Fields(SandboxedFormatter):
    """`str.format` in the sandbox."""

    def convert_field(self, value: Any, conversion: Any) -> Any:
        return Formatter.convert_field(self, printable(value, "the method 'format'"), conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        check_format(format_spec)
        written = Formatter.format_field(self, printable(value, "the method 'format'"), format_spec)
        spend(characters=len(written))
        return written


class _LookedUp(dict[Any, Any]):
    """The values of `"%(name)s" % values`, each checked when it is used."""

    def __init__(self, values: Mapping[Any, Any]) -> None:
        super().__init__(values)
        self._values = values

    def __getitem__(self, key: Any) -> Any:
        return _spent_on(printable(super().__getitem__(key), _PERCENT))

    def __str__(self) -> str:
        raise UnprintableError(self._values, _PERCENT)

    __repr__ = __str__


def _filled_in(values: Any) -> Any:
    """What a format's places are filled with."""
    if isinstance(values, tuple):
        return tuple([_spent_on(printable(value, _PERCENT)) for value in values])
    return _LookedUp(values) if isinstance(values, Mapping) else _spent_on(printable(values, _PERCENT))


def _written(value: Any) -> Any:
    return _spent_on(printable(value))


@jinja2.pass_context  # so that it isn't applied once and for all when the template is compiled
def _fixed(_: jinja2.runtime.Context, text: str) -> str:
    """A template's own text, which then is counted like all that is written."""
    return TemplateText(text)


def _spent_on(value: Any) -> Any:
    """A value that is written, its length counted."""
    if isinstance(value, str):
        spend(characters=len(value))
    return value


def _elements(values: Any) -> Iterable[Any]:
    """What is joined: an object's keys never are."""
    return (printable(values, "'join'"),) if isinstance(values, Mapping) else values


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that gets no value which it would make wrong text of."""
    check = present if name in _TAKE_ANYTHING else printable
    through = f"the filter '{name}'"
    text_arguments = _TEXT_ARGUMENTS.get(name, 0)

    def examine(value: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if type(value) is not str:
            check(value, through)
        if args or kwargs or name == "format":
            arguments = [*args, *kwargs.values()]
            for argument in arguments[:text_arguments]:
                printable(argument, through)
            check_call(name, value, arguments)

    @functools.wraps(function)
    def checked(value: Any, *args: Any, **kwargs: Any) -> Any:
        examine(value, args, kwargs)
        return function(value, *args, **kwargs)

    @functools.wraps(function)
    def checked_with_context(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        examine(value, args, kwargs)
        return function(context, value, *args, **kwargs)

    # Filters that ask for it get the context or the environment before the value.
    return checked if getattr(function, "jinja_pass_arg", None) is None else checked_with_context


def _default(value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    """Jinja2's, for null and NaN as well as for a missing field."""
    if isinstance(value, jinja2.Undefined) or is_absent(value) or (boolean and not value):
        return default_value
    return value


@jinja2.pass_context
def _join(context: jinja2.runtime.Context, value: Any, d: Any = "", attribute: Any = None) -> str:
    """Jinja2's, for elements that have a text form."""
    through = "the filter 'join'"
    if isinstance(value, Mapping):
        printable(value, through)
    elements = present(value, through)
    if attribute is not None:
        elements = context.environment.call_filter("map", value, (), {"attribute": attribute}, context)
    separator, texts = str(printable(d, through)), [str(printable(element, through)) for element in elements]
    check_joined(separator, texts)
    return separator.join(texts)


def _to_json(value: Any, indent: int | None = None) -> str:
    """JSON as people write it: no escapes for HTML, and keys in the row's order."""
    check_call("tojson", value, [indent])
    weigh(value, written=True)
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, default=_without_json)


def _without_json(value: Any) -> str:
    """Dates are text in JSON; a missing field, or bytes, is an error."""
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        raise UnprintableError(value, "the filter 'tojson'")
    return str(printable(value, "the filter 'tojson'"))


def _concat(*values: Any) -> str:
    """What `~` does."""
    texts = [value if type(value) is str else str(printable(value, "the operator '~'")) for value in values]
    spend(characters=sum(map(len, texts)))
    return "".join(texts)


@jinja2.pass_context
def _choice(context: jinja2.runtime.Context, options: Sequence[object]) -> object:
    """One of the options, the same one whenever a row with these fields is rendered."""
    fields = json.dumps(context["fields"], sort_keys=True, default=repr)
    digest = hashlib.blake2b(f"{fields} {options!r}".encode(), digest_size=8).digest()
    return options[int.from_bytes(digest) % len(options)]


def _most_frequent(items: Iterable[object]) -> list[object]:
    """The items that occur most often, in the order of their first occurrence."""
    counts = Counter(items)
    return [item for item, count in counts.items() if count == max(counts.values())]
