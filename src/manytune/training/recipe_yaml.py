"""YAML as recipes are written in it, and `--set a.b=c` put on top."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from manytune.errors import RecipeError

# What to do about a problem, by words of PyYAML's description of it; the first that fits.
_ADVICE = (
    ("'\\t'", "indent with spaces, not with tabs"),
    (
        "mapping values are not allowed",
        "put a value with a colon and a space in it in quotes, and indent the keys of a section alike",
    ),
    (
        "expected <block end>",
        "put a value that begins with {{ or with a quote in quotes as a whole, and indent the keys of a section alike",
    ),
    ("expected ',' or", "close each [ and {, and put a value with {{ in it in quotes"),
    ("end of stream", "close the quote that is opened here or above"),
    ("cannot start any token", "put a value that begins with this character in quotes"),
    ("found another document", "a recipe is one document: leave out the line --- and what comes after it"),
    ("determine a constructor", "values with a tag (!) aren't read; leave the tag out"),
    ("undefined alias", "put a value that begins with * in quotes"),
    (
        "unknown escape character",
        "a backslash in double quotes begins an escape: use single quotes, or / in a path",
    ),
    ("sequence entries are not allowed", "begin a list in the line below its key, or write it as [a, b]"),
    ("expected ':'", "write each key as `key: value`, and indent a text under `|` further than its key"),
)


#: A no-break space where YAML wants a space, as web pages and word processors write it.
_NO_BREAK = re.compile("^[ \u00a0]*\u00a0|:\u00a0")


#: What opens and closes a quotation in print, and is text to YAML.
_OPENING, _CLOSING = "“”„‟«»‘‚‹", "“”«»’‘›"
#: A value that a straight quote opens and a typographic one closes.
_MIXED = re.compile("[:\\[,-] *[\"'][^\"']*[”“’»]\\s*$")
#: Spaces and marks that can't be seen, by the names that web pages and editors have for them.
_UNSEEN = {
    "\u00a0": "a no-break space",
    "\u202f": "a narrow no-break space",
    "\u2007": "a figure space",
    "\u200b": "a zero-width space",
    "\u200e": "a left-to-right mark",
    "\u2060": "a word joiner",
    "\ufeff": "a byte order mark",
}


class Loader(yaml.SafeLoader):
    """YAML as people expect it: `2e-4` is a number (YAML 1.1 wants `2.0e-4`), and no key is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping, none of whose keys is given twice."""
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable) or key_node.id != "scalar":
                problem = (
                    "a value that begins with {{ is put in quotes, as in prompt: '{{ question }}'"
                    if key_node.id == "mapping"
                    else "a key is one word or number, not a list or a section"
                )
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                problem = f"the key {key!r} is given twice; keep one of the two"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value; one that Python can't hold, such as the 45th of a month, is a mistake of the file's."""
        if isinstance(node, yaml.ScalarNode) and node.style is None and (problem := _unmeant(node.value)):
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        try:
            return super().construct_object(node, deep=deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            problem = f"{node.tag.removeprefix('tag:yaml.org,2002:')} that can't be read: {error}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """The content of a recipe's text.

    Raises:
        yaml.YAMLError: It isn't YAML, a key is given twice, or sections are nested hundreds deep.
    """
    try:
        return yaml.load(text, Loader=Loader)  # noqa: S506  # a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("its values are nested too deeply") from None


def _unmeant(text: str) -> str:
    """What is wrong with a value that isn't in quotes and has signs at its ends that word processors write."""
    if len(text) > 1 and text[0] in _OPENING and text[-1] in _CLOSING:
        return f"{text[0]} and {text[-1]} are no quotes in YAML, but part of the text; write straight ones, \" or '"
    unseen = next((mark for mark in (text[:1], text[-1:]) if mark in _UNSEEN), None)
    if unseen:
        return f"{text.strip(unseen)!r} has {_UNSEEN[unseen]} (U+{ord(unseen):04X}) next to it; remove it"
    return ""


def line_of(error: yaml.YAMLError) -> str:
    """Where it is wrong, as `:line`."""
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark else ""


def problem_of(error: yaml.YAMLError, text: str = "") -> str:
    """What is wrong, and what to do about it where it is a usual mistake.

    Args:
        error: What PyYAML found.
        text: What it read.
    """
    if isinstance(error, yaml.reader.ReaderError):
        return f"it has the character U+{ord(text[error.position]):04X}, which no text has; remove it"
    if spaced := next(
        (number for number, line in enumerate(text.splitlines(), 1) if _NO_BREAK.search(line)), None
    ):
        return (
            f"line {spaced} has a no-break space (U+00A0), which isn't a space in YAML; write a space instead"
        )
    problem = str(getattr(error, "problem", None) or error)[:500]
    if quoted := _typographic(error, text):
        return f"{problem}; line {quoted} has a typographic quote: write straight ones, \" or '"
    advice = next((advice for words, advice in _ADVICE if words in problem), None)
    return f"{problem}; {advice}" if advice else problem


def _typographic(error: yaml.YAMLError, text: str) -> int | None:
    """The line, up to the one that an error names, in which a typographic quote is to close a straight one."""
    mark = getattr(error, "problem_mark", None)
    lines = text.splitlines()[: mark.line + 1] if mark is not None else []
    return next((number for number, line in enumerate(lines, 1) if _MIXED.search(line)), None)


def apply_override(content: dict[str, Any], override: str) -> None:
    """Put one `a.b=c` into the recipe.

    Raises:
        RecipeError: It isn't written like that, or `a` holds a value.
    """
    where = f"--set {override}"
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"{where}: expected section.key=value, as in training.learning_rate=1e-4.")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: the value isn't valid YAML: {problem_of(error)}") from error
    section = content
    for depth, key in enumerate(keys[:-1]):
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise RecipeError(
                f"{where}: {'.'.join(keys[: depth + 1])} holds a value, so it has no keys in it."
            )
    section[keys[-1]] = value
