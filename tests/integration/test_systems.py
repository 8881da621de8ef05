"""What Windows lacks is imported nowhere but where it is known to be there."""

import ast
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "src" / "manytune"
OF_UNIX = {"fcntl", "grp", "pty", "pwd", "resource", "termios"}


def test_no_module_imports_at_its_top_what_windows_lacks() -> None:
    found = []
    for file in SOURCES.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import) and OF_UNIX & {alias.name for alias in node.names}:
                found.append(f"{file.relative_to(SOURCES)}:{node.lineno}")
    assert found == []
