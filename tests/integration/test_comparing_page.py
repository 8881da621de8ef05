"""docs/comparing.md lists every key of an experiment's own sections, and the learning rates that are tried."""

import importlib.util
from pathlib import Path

from manytune.experiments.recipe import default_learning_rates
from manytune.methods.registry import methods

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_has_the_keys() -> None:
    spec = importlib.util.spec_from_file_location("recipe_table", DOCS / "recipe_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    table = module.render_experiment()
    assert table in (DOCS / "comparing.md").read_text(), "update docs/comparing.md with docs/recipe_table.py"
    assert "| `compare.seeds` | `[0]` |" in table


def test_the_page_has_the_rates() -> None:
    page = (DOCS / "comparing.md").read_text()
    for name in methods():
        rates = ", ".join(f"{rate:g}" for rate in default_learning_rates(name))
        rows = [line for line in page.splitlines() if line.startswith("|") and line.endswith(f"| {rates} |")]
        assert any(f"`{name}`" in row or "all others" in row for row in rows), (name, rates)
