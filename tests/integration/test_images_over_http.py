"""A classifier of images from rows to a server: `data check`, `train`, `evaluate`, `compare`, `/v1/classify`."""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from starlette.testclient import TestClient
from tests.server.world import app_of
from tests.training.tiny_images import data_url, image, image_recipe, write_images
from typer.testing import CliRunner

from manytune.cli.main import build_app
from manytune.images import ImageReading
from manytune.server import images
from manytune.store.attaching import attached
from manytune.store.base import Base, load_base
from manytune.store.classifier_base import classifier_base
from manytune.store.store import AdapterStore
from manytune.training.recipe import recipe_from
from manytune.training.run import run


def manytune(*arguments: object, fails: bool = False) -> Any:
    result = CliRunner().invoke(build_app(), list(map(str, arguments)), catch_exceptions=False)
    assert bool(result.exit_code) is fails, result.output
    return result


@dataclass
class World:
    directory: Path
    recipe: Path
    base: Base
    client: TestClient


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("images")
    content = image_recipe(directory)
    recipe = directory / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content))
    manytune("train", recipe)
    three = write_images(directory / "three.jsonl", 12, names=("red", "green", "blue"))
    content["data"] |= {"train": str(three), "validation": None, "test": None}
    content |= {"method": {"name": "ia3", "target_modules": "all-linear", "feedforward_modules": []}}
    run(recipe_from({**content, "output": str(directory / "three")}))
    base = load_base(content["base"])
    store = AdapterStore(directory / "store")
    for name, folder in {"sides": "run", "three": "three"}.items():
        store.add(directory / folder / "adapter", name=name, base=base)
    with TestClient(app_of(base, store), base_url="http://localhost") as client:
        yield World(directory, recipe, base, client)


def ask(world: World, **body: Any) -> Any:
    return world.client.post("/v1/classify", json=body)


def alone(world: World, run: str, names: list[str], urls: list[str]) -> list[dict[str, float]]:
    """One image at a time, with the adapter attached."""
    assert isinstance(world.base.images, ImageReading)
    whole = classifier_base(world.base, names)
    with attached(whole, world.directory / run / "adapter") as model, torch.no_grad():
        pixels = [torch.from_numpy(world.base.images.pixels(url))[None] for url in urls]
        found = [model(pixel_values=one).logits.softmax(-1)[0].tolist() for one in pixels]
    return [dict(zip(names, one, strict=True)) for one in found]


def test_images_have_the_labels_of_their_own_classifier(world: World) -> None:
    draw = random.Random(9)
    urls = [data_url(image(side, draw)) for side in ("left", "right", "left")]
    for name, run_name, names in (
        ("sides", "run", ["left", "right"]),
        ("three", "three", ["blue", "green", "red"]),
    ):
        answer = ask(world, model=name, input=urls)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        for row, expected in zip(found["data"], alone(world, run_name, names, urls), strict=True):
            assert row["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert found["usage"]["total_tokens"] == 15
        if name == "sides":
            assert [row["label"] for row in found["data"]] == ["left", "right", "left"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": "a text"}, "image 0: this base reads images; give each as data:image/png;base64,"),
        ({"input": "/etc/passwd"}, "this base reads images"),
        ({"input": "pixels:[[0]]"}, "this base reads images"),
        ({"input": "data:image/png;base64,AAAA"}, "image 0: .*isn't an image"),
        ({"input": ["data:,"] * 257}, "expected 256 images at most, found 257"),
        ({"input": "data:,", "text_pair": "a"}, "takes images, without text_pair"),
        ({"input": [data_url([[0, 0]]), data_url([[0, 0, 0]])]}, "more than 4 pixels; send fewer"),
    ],
)
def test_what_is_no_image_is_refused_and_no_file_is_opened(
    world: World, body: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MOST_REQUEST_PIXELS", 4)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail(f"{self} was read"))
    answer = ask(world, model="sides", **body)
    assert answer.status_code == 400
    assert re.search(message, answer.json()["error"]["message"]), answer.text


def test_a_base_of_images_gives_neither_embeddings_nor_text(world: World) -> None:
    for route, body in (("embeddings", {"input": "a"}), ("completions", {"prompt": "a"})):
        refused = world.client.post(f"/v1/{route}", json={"model": "base", **body})
        assert refused.status_code == 400, refused.text
    assert "reads images" in world.client.post("/v1/embeddings", json={"model": "base", "input": "a"}).text


def test_a_run_is_evaluated_against_the_majority_class(world: World) -> None:
    found = json.loads(manytune("evaluate", world.directory / "run", "--json").stdout)
    assert [result["name"] for result in found["results"]] == ["majority class", "run"]
    assert found["results"][1]["scores"][0]["value"] > 0.8


def test_a_comparison_has_full_fine_tuning_and_lora(world: World) -> None:
    content = yaml.safe_load(world.recipe.read_text())
    content["output"] = str(world.directory / "comparison")
    content["training"]["epochs"] = 1
    systems = {"full": {"method": {"name": "full"}, "learning_rates": 0.01}, "lora": {"learning_rates": 0.02}}
    content["compare"] = {"systems": systems}
    path = world.directory / "compare.yaml"
    path.write_text(yaml.safe_dump(content))
    found = json.loads(manytune("compare", path, "--json").stdout)
    assert [result["name"] for result in found["results"]] == ["majority class", "full", "lora"]


def test_the_rows_are_checked_and_previewed_without_their_pixels(world: World) -> None:
    content = yaml.safe_load(world.recipe.read_text())
    rows = Path(content["data"]["train"]).read_text()
    file = world.directory / "with-a-bad-one.jsonl"
    file.write_text(rows + json.dumps({"picture": "absent.png", "side": "left"}) + "\n")
    content["data"]["train"] = str(file)
    path = world.directory / "check.yaml"
    path.write_text(yaml.safe_dump(content))
    found = json.loads(manytune("data", "check", "--recipe", path, "--json", fails=True).stdout)["files"][0]
    assert found["labels"] == {"left": 17, "right": 16} and found["lengths"] == {}
    assert [row["row"] for row in found["rejected"]] == [33]
    shown = json.loads(manytune("data", "preview", "--recipe", path, "--rows", 1, "--json").stdout)["shown"]
    assert shown[0]["parts"][0]["text"].startswith("image ") and shown[0]["parts"][1]["text"] == "left"
