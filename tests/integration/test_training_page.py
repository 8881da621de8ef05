"""docs/training.md lists every key of a recipe with its default, as the code has them."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_has_the_recipes_keys() -> None:
    spec = importlib.util.spec_from_file_location("recipe_table", DOCS / "recipe_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = [line for line in (DOCS / "training.md").read_text().splitlines() if line.startswith("| `")]
    table = module.render().splitlines()
    assert rows[: len(table)] == table, "update the table in docs/training.md with docs/recipe_table.py"
    assert any(line.startswith("| `training.learning_rate` | `0.0002` |") for line in table)
