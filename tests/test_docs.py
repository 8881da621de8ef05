"""The documentation against the program: links resolve, commands and names exist, the site builds."""

import ast
import importlib.util
import json
import re
import shlex
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import manytune
from manytune.cli.main import build_app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(page.read_text()) if language in languages]


def commands(page: Path, program: str) -> list[str]:
    """Lines of shell blocks that start with `program`, continued lines joined."""
    found = []
    for block in blocks(page, "bash", "console", "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.removeprefix("$ ").strip()
            if command.split(maxsplit=1)[:1] == [program]:
                found.append(command)
    return found


@cache
def program() -> Any:
    return typer.main.get_command(build_app())


def mistakes(command: str) -> list[str]:
    """What in a `manytune ...` line the real command line doesn't know."""
    node: Any = program()
    for word in shlex.split(command, comments=True)[1:]:
        if word == "--":  # another program's options
            break
        if word.startswith("-"):
            known = {
                name for parameter in node.params for name in [*parameter.opts, *parameter.secondary_opts]
            }
            if word.split("=")[0] not in known | {"--help"}:
                return [f"{node.name} has no option {word}"]
        elif hasattr(node, "commands"):
            if word not in node.commands:
                return [f"{node.name} has no command {word}"]
            node = node.commands[word]
    return []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_shown_is_one_the_program_has(page: Path) -> None:
    assert [found for command in commands(page, "manytune") for found in mistakes(command)] == []


def test_a_command_or_option_that_does_not_exist_is_found() -> None:
    assert mistakes("manytune dance") == ["manytune has no command dance"]
    assert mistakes("manytune serve --engine vllm -- --loud") == []
    assert mistakes("manytune demo --loud") == ["demo has no option --loud"]
    assert mistakes("manytune demo --help  # a comment --loud") == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_shown_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = {command.split()[1] for command in commands(page, "make") if len(command.split()) > 1}
    assert shown <= targets


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_inside_the_project_resolves(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if not target.startswith(("https://", "http://", "#", "mailto:")):
            assert (page.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_examples_parse_and_import_public_names_only(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "manytune":
                assert {alias.name for alias in node.names} <= set(manytune.__all__)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_yaml_examples_parse(page: Path) -> None:
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_nobody_is_sent_to_a_package_index_for_manytune_which_isnt_there(page: Path) -> None:
    assert re.findall(r"pip install [^\n`#]*['\" ]manytune(?![\w.-]*\.whl)", page.read_text()) == []


def test_the_tests_that_hold_a_promise_of_security_exist() -> None:
    named = re.findall(
        r"`((?:tests/\w+/)?test_\w+\.py)(?:::(\w+))?`", (ROOT / "docs/security.md").read_text()
    )
    assert len(named) > 30
    for file, test in named:
        source = (ROOT / file if "/" in file else ROOT / "tests/attacks" / file).read_text()
        assert f"def {test}(" in source if test else source, (file, test)


def test_the_readme_begins_with_the_two_commands() -> None:
    lines = [
        line for block in blocks(ROOT / "README.md", "bash") for line in block.splitlines() if line.strip()
    ]
    assert [line.split("#")[0].strip() for line in lines[:2]] == ["make demo", "make test"]


def test_the_command_reference_is_what_the_program_says() -> None:
    path = ROOT / "docs" / "cli_reference.py"
    spec = importlib.util.spec_from_file_location("cli_reference", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.render(), "run: python docs/cli_reference.py"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    mkdocs = pytest.importorskip("mkdocs.commands.build", reason="pip install -e '.[docs]'")
    from mkdocs.config import load_config

    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    config = load_config(str(tmp_path / "mkdocs.yml"), strict=True)
    mkdocs.build(config)
    site = tmp_path / "site"
    assert (site / "index.html").stat().st_size > 1000
    assert json.loads((site / "search" / "search_index.json").read_text())["docs"]
    assert '<span class="nt">' in (site / "training" / "index.html").read_text()  # Pygments coloured the YAML
    fetched = re.compile(r"""<(?:script|img|link|iframe)[^>]+(?:src|href)=["']?(https?:)?//[^"'\s>]+""")
    pages = [path.read_text() for path in site.rglob("*.html")]
    assert [found[0] for page in pages for found in fetched.finditer(page)] == []


def test_the_readmes_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.store.tiny import save_tiny_base

    load_base, tiny = manytune.load_base, str(save_tiny_base(tmp_path / "tiny"))
    monkeypatch.setattr(manytune, "load_base", lambda spec: load_base(tiny))
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(ROOT / "README.md", "python")
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102  # the README's own
    assert "trainable params: " in capsys.readouterr().out
    assert (tmp_path / "capitals" / "adapter_model.safetensors").is_file()


def test_the_quickstarts_recipe_is_one() -> None:
    from manytune.training.recipe import recipe_from
    from manytune.training.recipe_yaml import parse_yaml

    (recipe,) = blocks(ROOT / "docs" / "quickstart.md", "yaml")
    assert recipe_from(parse_yaml(recipe)).output == "runs/dialogue-lora"


def test_what_the_docs_say_is_supported_is_what_the_package_says() -> None:
    page, project = (ROOT / "docs" / "install.md").read_text(), (ROOT / "pyproject.toml").read_text()
    for version in re.findall(r"Python :: (3\.\d+)", project):
        assert version in page or version == "3.12"  # "3.11 to 3.13"
    (oldest,) = re.findall(r'"transformers>=([\d.]+)', project)
    (torch,) = re.findall(r'"torch>=([\d.]+)', project)
    assert f"transformers | {oldest} to " in page and f"PyTorch | {torch} and later" in page
    (pinned,) = re.findall(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    shown = {
        version for path in PAGES for version in re.findall(r"install torch==([\d.]+)", path.read_text())
    }
    assert shown == {pinned}
    listed = project.split("[project.optional-dependencies]")[1].split("[project.")[0]
    extras = re.findall(r"^([a-z-]+) = \[", listed, re.MULTILINE)
    assert [name for name in extras if f"`{name}`" not in page] == []
