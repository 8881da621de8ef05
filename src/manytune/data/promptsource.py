"""Templates in the promptsource format (Bach et al. 2022, arXiv:2202.01279) as prompt templates.

A promptsource file is YAML with a `!Template` for each way to put a data set into words:

    templates:
      1f0f…: !Template
        name: Is it true?
        jinja: "{{ passage }} Is it true that {{ question }}? ||| {{ answer_choices[label] }}"
        answer_choices: No ||| Yes

Input and target of each are one Jinja template, parted by `|||`. Here they become two, a prompt and a completion,
so that a prompt can be made for serving from a row without an answer. Variables that are set before the `|||` are
set in both, and an `if` around the `|||` is kept in both. As in promptsource, white space around the prompt and the
completion is dropped, and rows for which nothing is left are rows that the template doesn't apply to.

Unlike there, a missing field is an error, `choice` picks by the row's content and always the same, and nothing
is truncated. `{% macro %}`, functions such as `zip`, and several targets are errors that say so.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from manytune.data.nearest import did_you_mean
from manytune.data.rendering import called_functions, compile_part, named_fields, shorten, tokens
from manytune.data.templates import PromptTemplate
from manytune.errors import TemplateError, reason_of

_SEPARATOR = "|||"
_CHOICES = "answer_choices"
_WHOLE = ("for", "filter", "with")  # blocks that belong to one side as a whole
_PARTS = ("elif", "else")


def load_promptsource(file: str | Path, names: Sequence[str] | None = None) -> dict[str, PromptTemplate]:
    """Read templates from a promptsource file.

    Args:
        file: A `templates.yaml`.
        names: Which templates, in this order; `None` for all, in the file's.

    Returns:
        The templates by name.

    Raises:
        TemplateError: The file can't be read or isn't in the format, a name isn't in it or is there twice, or a
            template that is wanted uses something unsupported; the message names it.
    """
    found = _read(Path(file))
    unknown = [name for name in names or () if name not in found]
    if unknown:
        raise TemplateError(
            f"no template is named {unknown[0]!r}{did_you_mean(unknown[0], found)} "
            f"There are: {', '.join(map(repr, found))}",
            where=str(file),
        )
    converted = {}
    for name in found if names is None else names:
        try:
            converted[name] = from_promptsource(found[name]["jinja"], found[name].get(_CHOICES))
        except TemplateError as error:
            raise TemplateError(f"the template {name!r}: {error}", where=str(file)) from error
    return converted


def from_promptsource(jinja: str, answer_choices: str | None = None) -> PromptTemplate:
    """Part a promptsource template into a prompt and a completion.

    Args:
        jinja: Input and target, parted by `|||`.
        answer_choices: Jinja of the possible answers, parted by `|||`; the template reaches them as the list
            `answer_choices`.

    Raises:
        TemplateError: It isn't valid Jinja, isn't parted into exactly two, or uses something unsupported.
    """
    compile_part("promptsource", jinja)
    functions = called_functions(jinja) + called_functions(answer_choices or "")
    if functions:
        raise TemplateError(f"the function {functions[0]}() isn't supported")
    sides = _part(_parse(jinja), "prompt")
    if sides.now == "prompt":
        raise TemplateError(f"there is no {_SEPARATOR} between an input and a target: {shorten(jinja)!r}")
    return PromptTemplate(_finish(sides.prompt, answer_choices), _finish(sides.completion, answer_choices))


def _finish(text: str, answer_choices: str | None) -> str:
    """Put the choices before a part that uses them, and drop the white space around it."""
    trimmed = f"{{% filter trim %}}{text.strip()}{{% endfilter %}}"
    if _CHOICES not in named_fields(trimmed):
        return trimmed
    if answer_choices is None:
        raise TemplateError("it uses answer_choices, and the file gives none")
    compile_part(_CHOICES, answer_choices)
    if "{" not in answer_choices:
        choices = [choice.strip() for choice in answer_choices.split(_SEPARATOR)]
        return f"{{% set {_CHOICES} = {json.dumps(choices, ensure_ascii=False)} %}}{trimmed}"
    return (
        f"{{% set {_CHOICES} %}}{answer_choices}{{% endset %}}"
        f'{{% set {_CHOICES} = {_CHOICES}.split("{_SEPARATOR}") | map("trim") | list %}}{trimmed}'
    )


# The file
# ---------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Plain data only: the format's two tags are read as mappings, and any other tag is an error."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("!Template", _mapping)
_Loader.add_constructor("!TemplateMetadata", _mapping)


def _read(file: Path) -> dict[str, Mapping[str, Any]]:
    """Return what the file says of each template, by the templates' names."""
    try:
        content = yaml.load(file.read_text(encoding="utf-8-sig"), Loader=_Loader)  # noqa: S506  # a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TemplateError(
            f"the promptsource file can't be read: {reason_of(error)}", where=str(file)
        ) from error
    templates = content.get("templates") if isinstance(content, dict) else None
    if not isinstance(templates, dict) or not templates:
        raise TemplateError("a promptsource file has templates under the key templates", where=str(file))
    found: dict[str, Mapping[str, Any]] = {}
    for key, template in templates.items():
        if not isinstance(template, dict):
            raise TemplateError(f"templates.{key} isn't a !Template", where=str(file))
        for part, needed in (("name", True), ("jinja", True), (_CHOICES, False)):
            value = template.get(part)
            if not isinstance(value, str) and (needed or value is not None):
                raise TemplateError(
                    f"templates.{key}.{part}: expected text; found {value!r}", where=str(file)
                )
        if template["name"] in found:
            raise TemplateError(f"two templates are named {template['name']!r}", where=str(file))
        found[template["name"]] = template
    return found


# The template
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Leaf:
    """Text, a variable, or a `set`."""

    kind: Literal["data", "variable", "set"]
    text: str


@dataclass
class _Block:
    """A block such as `if`: its tags as written, and what is between them."""

    name: str
    tags: list[str]
    bodies: list[list[_Leaf | _Block]] = field(default_factory=lambda: [[]])

    @property
    def text(self) -> str:
        """The whole block as written."""
        inner = ["".join(node.text for node in body) for body in self.bodies]
        return "".join(tag + body for tag, body in zip(self.tags, [*inner, ""], strict=True))


_Node = _Leaf | _Block


@dataclass
class _Sides:
    """The two templates so far, and to which of them further text belongs."""

    now: Literal["prompt", "completion", "either"]
    prompt: str = ""
    completion: str = ""


def _part(nodes: Sequence[_Node], side: Literal["prompt", "completion", "either"]) -> _Sides:
    sides = _Sides(side)
    for node in nodes:
        if isinstance(node, _Block) and node.name == "if" and _SEPARATOR in node.text:
            _part_branches(node, sides)
        elif isinstance(node, _Leaf) and node.kind == "data" and _SEPARATOR in node.text:
            if node.text.count(_SEPARATOR) > 1 or sides.now != "prompt":
                raise TemplateError(f"several targets (more than one {_SEPARATOR}) aren't supported")
            before, after = node.text.split(_SEPARATOR)
            sides.prompt += before
            sides.completion += after
            sides.now = "completion"
        elif _SEPARATOR in node.text:
            what = f"a {node.name} block" if isinstance(node, _Block) else "an expression"
            raise TemplateError(f"{_SEPARATOR} inside {what} isn't supported: {shorten(node.text)!r}")
        elif sides.now == "prompt":
            sides.prompt += node.text
            sides.completion += _sets(node)
        elif sides.now == "completion":
            sides.completion += node.text
        elif node.text.strip():
            raise TemplateError(
                f"text after an if with {_SEPARATOR} in only some of its branches isn't supported: "
                f"{shorten(node.text.strip())!r}"
            )
    return sides


def _part_branches(block: _Block, sides: _Sides) -> None:
    """Part an `if` whose branches are parted: its conditions go to both sides."""
    if sides.now != "prompt":
        raise TemplateError(f"several targets (more than one {_SEPARATOR}) aren't supported")
    branches = [_part(body, "prompt") for body in block.bodies]
    *tags, end = block.tags
    sides.prompt += "".join(t + branch.prompt for t, branch in zip(tags, branches, strict=True)) + end
    sides.completion += "".join(t + branch.completion for t, branch in zip(tags, branches, strict=True)) + end
    always = _name(tags[-1]) == "else" and all(branch.now == "completion" for branch in branches)
    sides.now = "completion" if always else "either"


def _sets(node: _Node) -> str:
    """What is left of a node if only its variables are wanted."""
    if isinstance(node, _Leaf):
        return node.text if node.kind == "set" else ""
    if node.name == "set":
        return node.text
    if node.name != "if":
        return ""  # a variable that is set inside another block ends with it
    bodies = ["".join(_sets(inner) for inner in body) for body in node.bodies]
    if not any(bodies):
        return ""
    return "".join(tag + body for tag, body in zip(node.tags, [*bodies, ""], strict=True))


def _parse(source: str) -> list[_Node]:
    """Return the template as a tree; the source is known to be valid Jinja."""
    top = _Block("", [])
    open_blocks = [top]
    for kind, text in _pieces(source):
        inner = open_blocks[-1]
        if kind != "block":
            inner.bodies[-1].append(_Leaf("variable" if kind == "variable" else "data", text))
            continue
        name = _name(text)
        if name == "set" and _assigns(text):
            inner.bodies[-1].append(_Leaf("set", text))
        elif name in ("if", "set", *_WHOLE):
            block = _Block(name, [text])
            inner.bodies[-1].append(block)
            open_blocks.append(block)
        elif name in _PARTS:
            inner.tags.append(text)
            inner.bodies.append([])
        elif name == f"end{inner.name}":
            inner.tags.append(text)
            open_blocks.pop()
        else:
            raise TemplateError(f"{{% {name} %}} isn't supported")
    return top.bodies[0]


def _pieces(source: str) -> Iterator[tuple[Literal["data", "variable", "block"], str]]:
    """Yield what is outside braces, and what is inside `{{ }}` and `{% %}` with its braces.

    A comment is yielded empty, in place of a variable: its hyphens may drop the white space next to it.
    """
    text = ""
    for kind, value in tokens(source):
        if kind.startswith("raw"):
            raise TemplateError("{% raw %} isn't supported")
        if kind == "data":
            yield "data", value
            continue
        text += "" if kind == "comment" else value
        if kind in ("variable_end", "comment_end"):
            yield "variable", text
        elif kind == "block_end":
            yield "block", text
        if kind.endswith("_end"):
            text = ""


def _name(tag: str) -> str:
    """The first word of `{% ... %}`."""
    return tag.strip("{%-+} \n\t").split(maxsplit=1)[0]


def _assigns(tag: str) -> bool:
    """Whether a `set` has its value in the tag and not between two tags."""
    depth = 0
    for _, value in tokens(tag):
        depth += (value in "([{") - (value in ")]}") if len(value) == 1 else 0
        if value == "=" and depth == 0:
            return True
    return False
