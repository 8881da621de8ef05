"""The folders are the architecture: who may import whom, read from the parsed imports."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "manytune"
FILES = sorted(SRC.rglob("*.py"))
TESTS = Path(__file__).parent
# Tests of several rooms together, of processes that are killed, of attacks, next to HF PEFT, and the slow twins: no one
# source is theirs.
ACROSS_ROOMS = {"integration", "faults", "attacks", "parity", "reference"}

# What each package may import besides itself and single files such as `errors.py`. A package that isn't here was added
# without deciding on its place.
ALLOWED = {
    "kernels": set[str](),
    "methods": {"kernels"},
    "mixed": {"methods", "kernels"},
    "model": {"mixed", "methods", "kernels"},
    # HF PEFT's module paths, for code that imports them.
    "tuners": {"methods"},
    "utils": {"methods", "model"},
    "data": set[str](),
    "store": {"model", "mixed", "methods"},
    "training": {"data", "model", "methods", "store", "kernels"},
    "evaluation": {"data", "store"},
    "engine": {"store", "model", "mixed", "methods", "kernels"},
    # It reads foreign files by the functions that the server uses for them, without a model library.
    "examination": {"data", "store", "methods"},
    # Of data only templates and encoding: a server makes prompts with the very code that training made them with.
    "server": {"engine", "examination", "data", "store", "mixed", "methods"},
    "handover": {"server", "examination", "data", "store", "methods"},
    # Many servers as one: of what a server computes it knows nothing, and loads it in other processes only.
    "replicas": {"server", "store"},
    # Sizes and formulas alone: of training those files that need no torch.
    "planner": {"training", "data", "mixed", "methods"},
    "experiments": {"training", "evaluation", "engine", "data", "store", "model", "methods"},
    "demo": {"experiments", "training", "evaluation", "engine", "data", "store", "model", "methods"},
    "cli": {
        "demo",
        "planner",
        "experiments",
        "handover",
        "server",
        "replicas",
        "examination",
        "training",
        "evaluation",
        "engine",
        "data",
        "store",
        "model",
        "methods",
    },
    "__main__": {"cli"},  # python -m manytune
}
# These are for people at a prompt or for operators: `manytune/__init__.py` offers nothing of theirs.
NOT_IN_THE_PUBLIC_NAMES = {
    "__main__",
    "cli",
    "demo",
    "examination",
    "experiments",
    "handover",
    "planner",
    "replicas",
    "server",
}
VAGUE = {"utils", "util", "helpers", "helper", "manager", "misc"}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
PICKLES_OF_TORCH = {("torch", "save"), ("torch", "load")}
LONGEST_FILE = 400
# What extras bring, which isn't on every machine, and where everything else starts from.
OF_EXTRAS = {
    "bitsandbytes",
    "fastapi",
    "openvino",
    "peft",
    "prometheus_client",
    "ray",
    "s3fs",
    "starlette",
    "tensorboard",
    "torchao",
    "trl",
    "uvicorn",
}
WITHOUT_EXTRAS = {
    "manytune.cli.main",
    "manytune.demo.story",
    "manytune.engine.engine",
    "manytune.evaluation.evaluate",
    "manytune.experiments.compare",
    "manytune.store.store",
    "manytune.training.run",
}


def module_of(path: Path) -> str:
    parts = ("manytune", *path.relative_to(SRC).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_of(path): path for path in FILES}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def nodes(tree: ast.AST, *, inside_functions: bool) -> Iterator[ast.AST]:
    waiting = [tree]
    while waiting:
        for child in ast.iter_child_nodes(waiting.pop()):
            yield child
            if inside_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                waiting.append(child)


@cache
def import_statements(tree: ast.AST, *, inside_functions: bool) -> list[ast.Import | ast.ImportFrom]:
    found = nodes(tree, inside_functions=inside_functions)
    return [node for node in found if isinstance(node, ast.Import | ast.ImportFrom)]


def imports_in(
    tree: ast.AST, importer: str, *, is_package: bool, inside_functions: bool = True
) -> Iterator[tuple[str, int]]:
    """Absolute names of everything imported, with line numbers: `from a import b` yields `a.b`."""
    for node in import_statements(tree, inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        else:
            origin = node.module or ""
            if node.level:
                parents = importer.split(".")
                kept = parents[: len(parents) - node.level + (1 if is_package else 0)]
                origin = ".".join([*kept, *([origin] if origin else [])])
            for alias in node.names:
                yield f"{origin}.{alias.name}", node.lineno


def package_of(module: str) -> str | None:
    """`manytune.data.readers` → `data`; a module directly in manytune, or the package itself, → None."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ALLOWED else None


def forbidden_imports(tree: ast.Module, importer: str, *, is_package: bool = False) -> list[str]:
    """Each import of one module that goes up or sideways, as `line: imported`."""
    package = package_of(importer)
    found = []
    for imported, line in imports_in(tree, importer, is_package=is_package):
        target = package_of(imported) if imported.split(".")[0] == "manytune" else None
        if target is None or target == package:
            continue
        if importer == "manytune":
            allowed = set(ALLOWED) - NOT_IN_THE_PUBLIC_NAMES
        else:
            allowed = ALLOWED[package] if package else set()
        if target not in allowed:
            found.append(f"{line}: {imported}")
    return found


def test_imports_go_down_only() -> None:
    found = {
        module_of(path): forbidden_imports(
            tree_of(path), module_of(path), is_package=path.name == "__init__.py"
        )
        for path in FILES
    }
    upwards = {module: imports for module, imports in found.items() if imports}
    assert not upwards, "these import rooms above or next to their own"


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("manytune.methods.tuners.base", "from manytune.store import files"),
        ("manytune.mixed.slots", "from manytune.model import peft_model"),
        ("manytune.training.run", "import manytune.engine.static_batch"),
        ("manytune.engine.static_batch", "from manytune import training"),
        ("manytune.evaluation.results", "def late():\n    from manytune.engine import static_batch"),
        ("manytune.data.readers", "if TYPE_CHECKING:\n    from ..training import recipe"),
        ("manytune.errors", "import manytune.data"),
    ],
)
def test_an_import_against_the_direction_is_seen_wherever_it_is(importer: str, line: str) -> None:
    assert len(forbidden_imports(ast.parse(line), importer)) == 1


def test_every_package_has_a_place_in_the_architecture_and_every_place_a_package() -> None:
    packages = {path.parent.name for path in SRC.glob("*/__init__.py")}
    assert packages | {"__main__"} == set(ALLOWED)


def test_the_allowed_imports_have_no_circle() -> None:
    assert not circle_in(ALLOWED)


def circle_in(imports: Mapping[str, set[str]]) -> list[str]:
    """Modules of which each imports the next, and the last is the first; none if there is no circle."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def modules_imported(trees: Mapping[str, ast.Module], packages: set[str]) -> dict[str, set[str]]:
    """For each module the others of these that it imports, within functions and for types alone, too."""
    found: dict[str, set[str]] = {}
    for module, tree in trees.items():
        names = [name for name, _ in imports_in(tree, module, is_package=module in packages)]
        targets = {name if name in trees else name.rpartition(".")[0] for name in names}
        found[module] = targets & set(trees) - {module}
    return found


def test_no_files_import_each_other_in_a_circle() -> None:
    trees = {module_of(path): tree_of(path) for path in FILES}
    packages = {module_of(path) for path in FILES if path.name == "__init__.py"}
    assert not circle_in(modules_imported(trees, packages))


@pytest.mark.parametrize(
    "line",
    [
        "from manytune.data import records",
        "import manytune.data.records",
        "def late():\n    from manytune.data.records import Record",
        "if TYPE_CHECKING:\n    from .records import Record",
    ],
)
def test_a_circle_is_seen_however_its_files_import(line: str) -> None:
    sources = {
        "manytune.data.readers": line,
        "manytune.data.records": "from manytune.data.text import read",
        "manytune.data.text": "from manytune.data import readers",
    }
    trees = {module: ast.parse(source) for module, source in sources.items()}
    assert set(circle_in(modules_imported(trees, set()))) == set(sources)
    assert not circle_in(modules_imported({**trees, "manytune.data.text": ast.parse("import json")}, set()))


def test_a_file_has_one_responsibility_and_a_name_for_it() -> None:
    assert not [module_of(path) for path in FILES if path.stem in VAGUE]
    lines = {module_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert not {module: count for module, count in lines.items() if count > LONGEST_FILE}, "split them"


def test_nothing_reads_or_writes_pickle() -> None:
    for path in FILES:
        tree = tree_of(path)
        imported = {name.split(".")[0] for name, _ in imports_in(tree, module_of(path), is_package=False)}
        assert not imported & PICKLES, module_of(path)
        attributes = {
            (node.value.id, node.attr)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        assert not attributes & PICKLES_OF_TORCH, module_of(path)


def test_methods_know_no_trainer_and_no_file_layout_outside_checkpoint() -> None:
    for path in sorted((SRC / "methods").rglob("*.py")):
        names = [name for name, _ in imports_in(tree_of(path), module_of(path), is_package=False)]
        trainers = ("transformers.Trainer", "transformers.trainer")
        assert not any(name.startswith(trainers) for name in names), module_of(path)
        if path.parent.name != "checkpoint":
            assert not any(name.split(".")[0] == "safetensors" for name in names), module_of(path)


@cache
def imports_of(module: str) -> tuple[frozenset[str], frozenset[str]]:
    """The package's files and the libraries that are imported with a file: not in functions, not for types alone."""
    path = PATHS[module]
    tree = ast.Module([node for node in tree_of(path).body if not is_for_types(node)], [])
    is_package = path.name == "__init__.py"
    names = [name for name, _ in imports_in(tree, module, is_package=is_package, inside_functions=False)]
    files = {name if name in PATHS else name.rpartition(".")[0] for name in names} & set(PATHS)
    return frozenset(files), frozenset(name.split(".")[0] for name in names)


@cache
def loaded_with(start: str) -> frozenset[str]:
    """All files of the package that are imported when one is, itself included."""
    waiting, seen = [start], {start}
    while waiting:
        new = imports_of(waiting.pop())[0] - seen
        seen |= new
        waiting += new
    return frozenset(seen)


def libraries_at_import(start: str) -> set[str]:
    return {library for module in loaded_with(start) for library in imports_of(module)[1]}


def is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def test_what_extras_bring_is_imported_only_when_asked_for() -> None:
    assert {"fastapi", "starlette"} <= libraries_at_import("manytune.server.app") & OF_EXTRAS
    assert "ray" in libraries_at_import("manytune.replicas.ray_deployment")
    needed = {start: libraries_at_import(start) & OF_EXTRAS for start in WITHOUT_EXTRAS}
    assert not {start: libraries for start, libraries in needed.items() if libraries}


def test_imports_within_functions_are_for_a_light_start_alone() -> None:
    """One of what is loaded with the file anyway would only hide a circle, or nothing at all."""
    always = loaded_with("manytune")
    found = []
    for module, path in PATHS.items():
        top = {node for node, _ in statements(path, inside_functions=False)}
        for node, names in statements(path, inside_functions=True):
            loaded = {name if name in PATHS else name.rpartition(".")[0] for name in names} & (
                loaded_with(module) | always
            )
            if node not in top and loaded - {module, "manytune"}:
                found.append(f"{module}:{node.lineno}: {', '.join(sorted(loaded))}")
    assert not found


def statements(path: Path, *, inside_functions: bool) -> Iterator[tuple[ast.stmt, list[str]]]:
    """Each import statement of a file, with what it imports."""
    is_package = path.name == "__init__.py"
    for node in import_statements(tree_of(path), inside_functions=inside_functions):
        own = imports_in(ast.Module([node], []), module_of(path), is_package=is_package)
        yield node, [name for name, _ in own]


def test_methods_has_methods_alone_next_to_what_they_share() -> None:
    shared = {"__init__", "config", "registry", "outline", "tuners", "checkpoint", "arithmetic"}
    for path in sorted((SRC / "methods").iterdir()):
        if path.stem in shared or not (path.suffix == ".py" or (path / "__init__.py").is_file()):
            continue
        source = (path if path.is_file() else path / "model.py").read_text()
        assert "\nregister(" in source, f"methods/{path.name} registers no method"


def is_named_after_a_source(test: Path) -> bool:
    """Whether `tests/room/test_NAME.py` or `test_NAME_aspect.py` has a file or a folder `src/manytune/room/NAME`."""
    room = SRC / test.relative_to(TESTS).parent
    sources = [path.stem for path in room.glob("*") if path.is_dir() or path.suffix == ".py"]
    subject = test.stem.removeprefix("test_")
    return any(subject == name or subject.startswith(f"{name}_") for name in sources)


def test_a_test_file_carries_the_name_of_the_source_that_it_covers() -> None:
    own = [
        test
        for test in sorted(TESTS.glob("*/**/test_*.py"))
        if test.relative_to(TESTS).parts[0] not in ACROSS_ROOMS
    ]
    unnamed = [str(test.relative_to(TESTS)) for test in own if not is_named_after_a_source(test)]
    assert own and not unnamed, (
        "no source of this name in the mirrored folder: rename it, or move it to tests/integration"
    )


def test_a_test_file_named_after_nothing_is_seen() -> None:
    assert is_named_after_a_source(TESTS / "data" / "test_readers.py")
    assert is_named_after_a_source(TESTS / "data" / "test_readers_of_large_files.py")
    assert is_named_after_a_source(TESTS / "training" / "test_loop_resumed.py")  # a folder
    assert not is_named_after_a_source(TESTS / "data" / "test_reading.py")
    assert not is_named_after_a_source(TESTS / "readers" / "test_readers.py")
