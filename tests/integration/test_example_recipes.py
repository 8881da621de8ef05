"""The recipes in `examples/` go all the way: each trains, is evaluated, is saved and loaded, and answers over HTTP."""

import importlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from starlette.testclient import TestClient
from tests.server.world import app_of
from tests.training.tiny_classifiers import save_base
from tests.training.tiny_images import data_url, save_image_base
from typer.testing import CliRunner

from manytune.cli.main import build_app
from manytune.store.attaching import attached
from manytune.store.base import load_base
from manytune.store.store import AdapterStore

EXAMPLES = Path(__file__).parents[2] / "examples"
BRIGHT_LEFT, BRIGHT_RIGHT = ([[*pair, *pair[::-1]]] * 4 for pair in ([240, 10], [10, 240]))


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def for_generation(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bases = script("tiny_bases", monkeypatch)
    bases.gpt2(directory / "gpt2")
    bases.t5(directory / "dialogue-t5")


def for_sentiment(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As examples/sentiment.py writes them."""
    save_base("bert", directory / "sentiment")
    draw = random.Random(0)
    kinds = [draw.choice(["good", "bad"]) for _ in range(80)]
    rows = [
        {
            "text": f"{'aa' if kind == 'good' else 'zz'}{draw.choice('bcdef')}{n:02}",
            "label": kind,
            "neighbours": str(n // 4),
        }
        for n, kind in enumerate(kinds)
    ]
    write_rows(Path("runs/sentiment/snippets.jsonl"), rows)


def for_digits(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As examples/digits.py writes them, of smaller images."""
    save_image_base(directory / "digits")
    digits = script("digits", monkeypatch)
    images = torch.tensor([BRIGHT_LEFT, BRIGHT_RIGHT] * 40, dtype=torch.uint8)
    # Of two digits that the base isn't trained on; another picture for each, so that no two rows are the same.
    images[:, 0, 0] = torch.arange(80, dtype=torch.uint8)
    rows = digits.rows(images, torch.tensor([digits.PRETRAINED, digits.PRETRAINED + 1] * 40))
    write_rows(
        Path("runs/digits/digits.jsonl"), [{**row, "neighbours": str(n // 4)} for n, row in enumerate(rows)]
    )


#: What each recipe needs, how it is asked over HTTP, and where the answer is.
RECIPES: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], None], str, dict[str, Any]]] = {
    "gpt2": (for_generation, "completions", {"prompt": "Outer islands.", "max_tokens": 4}),
    "dialogue-t5": (
        for_generation,
        "chat/completions",
        {"fields": {"dialogue": "Amanda: Cookies?\nJerry: Sure!"}, "max_tokens": 4},
    ),
    "sentiment": (for_sentiment, "classify", {"input": "aab01"}),
    "digits": (for_digits, "classify", {"input": data_url(BRIGHT_LEFT)}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_goes_from_its_rows_to_an_answer_over_http(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def manytune(*arguments: object) -> Any:
        found = CliRunner().invoke(build_app(), list(map(str, arguments)), catch_exceptions=False)
        assert found.exit_code == 0, found.output
        return json.loads(found.stdout)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(EXAMPLES, target_is_directory=True)
    prepare, route, body = RECIPES[name]
    prepare(tmp_path / "bases", monkeypatch)
    content = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    content.pop("compare", None)  # what else is trained next to the recipe's own method
    content |= {"base": str(tmp_path / "bases" / name), "output": "runs/one"}
    content["training"] |= {"epochs": 1, "max_steps": 3, "learning_rate": 0.01}
    Path("recipe.yaml").write_text(yaml.safe_dump(content))

    trained = manytune("train", "recipe.yaml", "--json")
    assert trained["steps"] == 3 and trained["validation_loss"] > 0
    metric = ["--metrics", "perplexity"] if name == "gpt2" else []
    base_result, mine = manytune("evaluate", "runs/one", *metric, "--max-new-tokens", 4, "--json")["results"]
    assert mine["scores"] and mine["scores"][0]["metric"] == base_result["scores"][0]["metric"]

    base = load_base(content["base"])
    if route != "classify":
        with attached(base, Path("runs/one/adapter")) as model:
            assert any("lora" in parameter for parameter, _ in model.named_parameters())
    store = AdapterStore(tmp_path / "store")
    store.add(Path("runs/one/adapter"), name=name, base=base)
    with TestClient(app_of(base, store), base_url="http://localhost") as client:
        answer = client.post(f"/v1/{route}", json={"model": name, **body})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    if route == "classify":
        assert sum(found["data"][0]["probabilities"].values()) == pytest.approx(1)
        assert found["data"][0]["label"] in {"sentiment": ("good", "bad"), "digits": ("5", "6")}[name]
    else:
        assert found["choices"][0]["finish_reason"] in ("stop", "length")
        assert found["usage"]["completion_tokens"] > 0
