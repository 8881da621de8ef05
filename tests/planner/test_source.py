"""Where a model's config is found, without any network."""

import json
from pathlib import Path

import huggingface_hub
import pytest
from tests.planner.configs import llama

from manytune.errors import RecipeError
from manytune.planner.source import architecture_from


def test_a_file_a_directory_and_a_section_are_the_same_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(llama()))
    found = [architecture_from(asked) for asked in (str(tmp_path), str(tmp_path / "config.json"), llama())]
    assert found[0] == found[1] == found[2]


def test_a_hub_id_is_looked_up_in_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(llama()))
    asked = []

    def cached(repo: str, file: str) -> str:
        asked.append((repo, file))
        return str(tmp_path / "config.json")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert architecture_from("someone/model").layers == 4
    assert asked == [("someone/model", "config.json")]


@pytest.mark.parametrize("asked", ["no/such-model", "not a model at all", "/nowhere/at/all", ""])
def test_a_model_that_is_not_here_is_refused_with_what_to_do(asked: str) -> None:
    with pytest.raises(
        RecipeError, match=r"none of them. Planning asks no network: save the model's config.json"
    ):
        architecture_from(asked)


def test_a_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no config.json"):
        architecture_from(str(tmp_path))
