"""Nothing outside a method's own room knows it: neither by its classes, nor by its name, options or tensors."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from functools import cache, lru_cache

import pytest
from tests.test_architecture import FILES, imports_in, module_of, tree_of

from manytune.methods.registry import Method, methods
from manytune.methods.tuners.layer_tuner import LayerTuner

#: Names for users: the public ones, and HF PEFT's module paths.
FOR_USERS = {"manytune", "manytune.tuners", "manytune.utils"}
#: The demo says which methods it shows, and with which options: data, as in a recipe of a user.
SHOWS_METHODS = "manytune.demo."
#: The methods of the package; other tests register more.
OWN = [m for m in methods().values() if m.tuner.__module__.startswith("manytune.methods.")]
ROOMS = {method.tuner.__module__.split(".")[2] for method in OWN}


def room(module: str) -> str | None:
    """`manytune.methods.lora.layer` → `lora`; None for a module that belongs to no method."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["manytune", "methods"] and len(parts) > 2 and parts[2] in ROOMS else None


@cache
def of_others(own: str | None) -> tuple[Method, ...]:
    """The methods of other rooms."""
    return tuple(method for method in OWN if room(method.tuner.__module__) != own)


@cache
def classes(known: tuple[Method, ...]) -> set[str]:
    return {kind.__name__ for method in known for kind in (method.config, method.tuner)}


def layers(known: tuple[Method, ...], *, shared: bool) -> list[type]:
    """The layers that methods put into models: those of their own rooms, or those that are parts for every method."""
    kinds = [m.tuner.layer_class for m in known if issubclass(m.tuner, LayerTuner)]
    return [kind for kind in kinds if (room(kind.__module__) is None) is shared]


@cache
def options(known: tuple[Method, ...]) -> set[str]:
    """Options that no method of another family has, less words that mean many things, and those of shared layers."""
    shared = {name for kind in layers(known, shared=True) for name in kind.other_param_names}
    fields = {m.name: {f.name for f in dataclasses.fields(m.config)} for m in known}
    family = {m.name: {o.name for o in known if issubclass(o.config, m.config)} for m in known}
    return {
        name
        for own, names in fields.items()
        for name in names
        if "_" in name
        and name not in shared
        and {other for other in fields if name in fields[other]} <= family[own]
    }


@cache
def tensors(known: tuple[Method, ...]) -> set[str]:
    return {name for kind in layers(known, shared=False) for name in kind.adapter_layer_names}


def knowledge(tree: ast.Module, module: str) -> list[str]:
    """What a module knows of methods that aren't its own, as `line: what`."""
    if module in FOR_USERS or module.rpartition(".")[0] in {"manytune.tuners", "manytune.utils"}:
        return []
    known = of_others(room(module))
    found = [*imported(tree, module), *named(tree, known)]
    if not module.startswith(SHOWS_METHODS):
        found += compared(tree, {m.name for m in known} | {str(m.peft_type) for m in known} | classes(known))
    if room(module) is None and not module.startswith(SHOWS_METHODS):
        found += read(tree, options(known) | tensors(known), tensors(known))
    return sorted(found)


@lru_cache(maxsize=1)
def walked(tree: ast.Module) -> list[ast.AST]:
    """The nodes of a module, once for all that is looked for in them."""
    return list(ast.walk(tree))


def imported(tree: ast.Module, module: str) -> Iterator[str]:
    """Imports from a method's room, unless by a method that derives from the class: AdaLoRA is a LoRA."""
    bases = {
        base.id
        for node in walked(tree)
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Name)
    }
    for name, line in imports_in(tree, module, is_package=False):
        derives = room(module) is not None and name.rpartition(".")[2] in bases
        if room(name) not in (None, room(module)) and not derives:
            yield f"{line}: imports {name}"


def named(tree: ast.Module, known: tuple[Method, ...]) -> Iterator[str]:
    """Classes by the package's public names, and members of `PeftType`."""
    kinds = {str(method.peft_type) for method in known}
    for node in walked(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "manytune":
            for alias in node.names:
                if alias.name in classes(known):
                    yield f"{node.lineno}: imports {alias.name}"
        elif isinstance(node, ast.Attribute):
            of_enumeration = isinstance(node.value, ast.Name) and node.value.id == "PeftType"
            if node.attr in classes(known) or (of_enumeration and node.attr in kinds):
                yield f"{node.lineno}: {ast.unparse(node)}"


def compared(tree: ast.Module, words: set[str]) -> Iterator[str]:
    """Names in a comparison, a pattern or a look-up, or as keys of a table; constants of the module count, too."""
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def words_in(node: ast.expr) -> set[str]:
        if isinstance(node, ast.Name) and node.id in constants:
            node = constants[node.id]
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            return set().union(*map(words_in, node.elts))
        return (
            {node.value} & words if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()
        )

    for node in walked(tree):
        asked: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            asked = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            asked = [node.value]
        elif isinstance(node, ast.Dict):
            asked = [key for key in node.keys if isinstance(key, ast.Constant)]
        elif (
            isinstance(node, ast.Subscript) and ast.unparse(node.value) != "Literal"
        ):  # a type isn't a look-up
            asked = [node.slice]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            asked = node.args if node.func.attr in ("get", "pop", "startswith", "endswith") else []
        for word in sorted(set().union(*map(words_in, asked))):
            yield f"{node.lineno}: asks about {word!r}"


def read(tree: ast.Module, names: set[str], parts: set[str]) -> Iterator[str]:
    """Options and tensors by their names, as attributes or in texts other than docstrings."""
    docstrings = {
        node.body[0].value
        for node in walked(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and isinstance(node.body[0], ast.Expr)
    }
    for node in walked(tree):
        if isinstance(node, ast.Attribute) and node.attr in names:
            yield f"{node.lineno}: reads .{node.attr}"
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or node in docstrings:
            continue
        if node.value in names or any(part in node.value for part in parts):
            yield f"{node.lineno}: names {node.value!r}"


def test_no_method_is_known_outside_its_own_room() -> None:
    found = {module_of(path): knowledge(tree_of(path), module_of(path)) for path in FILES}
    assert not {module: known for module, known in found.items() if known}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("manytune.store.exports", "from manytune.methods.lora.config import LoraConfig"),
        ("manytune.server.adapters.validation", "def late():\n    from manytune.methods import ia3"),
        ("manytune.methods.tuners.switching", "import manytune.methods.combined"),
        ("manytune.methods.vera", "from manytune.methods.lora.init import starts_from_weight"),
        ("manytune.store.exports", "from manytune import IA3Config"),
        ("manytune.cli.train", "import manytune\nmanytune.LoraConfig()"),
        ("manytune.model.mixed", "COMPATIBLE = (PeftType.LORA,)"),
        ("manytune.methods.bottleneck", "x = config.peft_type == PeftType.FULL"),
        ("manytune.training.recipe", "if name == 'adalora':\n    pass"),
        ("manytune.experiments.sweep", "METHOD = 'lora'\nif method != METHOD:\n    pass"),
        ("manytune.store.exports", "ok = config.peft_type in {'LORA', 'VERA'}"),
        ("manytune.store.exports", "ok = type(config).__name__ == 'LoraConfig'"),
        ("manytune.store.exports", "match name:\n    case 'full':\n        pass"),
        ("manytune.experiments.recipe", "RATES = {'full': 1e-4, 'ia3': 1e-2}"),
        ("manytune.experiments.recipe", "rate = methods()['vera'].learning_rate"),
        ("manytune.model.per_sample", "dora = getattr(config, 'use_dora', False)"),
        ("manytune.model.loading", "init = config.init_lora_weights"),
        ("manytune.planner.trained", "rank = method.r if method.use_dora else 0"),
        ("manytune.planner.recipe", "ok = method.name != 'prefix-tuning'"),
        ("manytune.experiments.spectra", "a = name.partition('.lora_A.')"),
    ],
)
def test_knowing_a_method_in_some_way_is_found(module: str, source: str) -> None:
    assert len(knowledge(ast.parse(source), module)) >= 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "manytune.methods.lora.model",
            "from manytune.methods.lora.config import LoraConfig\nx = PeftType.LORA",
        ),
        (
            "manytune.methods.adalora.model",
            "from manytune.methods.lora.model import L\nclass A(L): ...",
        ),
        ("manytune.training.recipe", "name: str = 'lora'"),
        ("manytune.training.recipe", "sharding: Literal['none', 'full'] = 'none'"),
        ("manytune.experiments.recipe", "REFERENCE = 'full'\nfound = {REFERENCE: 1}"),
        ("manytune.tuners.lora", "from manytune.methods.lora.layer import LoraLayer"),
        ("manytune.store.export_gguf", "writer.add_tensor(f'{name}.lora_a')"),
        ("manytune.model.mixed", "ok = method_of(config).tuner.mixes"),
    ],
)
def test_what_may_be_known_is_let_through(module: str, source: str) -> None:
    assert knowledge(ast.parse(source), module) == []
