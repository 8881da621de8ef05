"""The names of the methods and of their options, read from their sources.

Importing a method imports torch, which takes seconds. A misspelt name in a recipe is reported without it.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec

from manytune.methods import method_modules


@cache
def method_outline() -> dict[str, frozenset[str]]:
    """The options of each method of manytune by the method's name.

    They are read where each method's file calls `register(Method(name, peft_type, config, …))`, and from the annotated
    fields of that configuration class and of the classes that it derives from.
    """
    found = {}
    for module in method_modules():
        for node in _tree(module).body:
            match node:
                case ast.Expr(
                    ast.Call(
                        ast.Name("register"),
                        [ast.Call(ast.Name("Method"), [ast.Constant(str(name)), _, ast.Name(config), *_])],
                    )
                ):
                    found[name] = frozenset(_fields(module, config))
    return found


def _fields(module: str, name: str) -> set[str]:
    """The fields of a dataclass by its name in a module, with those of the classes that it derives from."""
    for node in _tree(module).body:
        match node:
            case ast.ClassDef(name=defined, bases=bases, body=body) if defined == name:
                inherited = (_fields(module, base.id) for base in bases if isinstance(base, ast.Name))
                return {
                    field.target.id
                    for field in body
                    if isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and "ClassVar" not in ast.unparse(field.annotation)
                }.union(*inherited)
            case ast.ImportFrom(module=str(origin), names=names):
                for alias in names:
                    if (alias.asname or alias.name) == name and origin.startswith(f"{__package__}."):
                        return _fields(origin, alias.name)
    return set()


@cache
def _tree(module: str) -> ast.Module:
    spec = find_spec(module)
    source = spec.loader.get_source(module) if spec and spec.loader else None  # type: ignore[attr-defined]
    return ast.parse(source or "")
