"""Commands that ask adapters take their names in the store."""

from pathlib import Path

import pytest
from tests.cli.opposites import evaluated, manytune, scores
from typer.testing import CliRunner

from manytune.cli.main import build_app
from manytune.store.store import AdapterStore


@pytest.fixture
def store(folder: Path) -> AdapterStore:
    """A store with both runs' adapters; the runs are gone."""
    kept = AdapterStore(folder / "kept")
    kept.add("runs/good", name="opposites")
    kept.add("runs/poor", name="team/poor")
    (folder / "runs").rename(folder / "elsewhere")
    return kept


def test_a_name_is_asked_with_the_template_of_its_training(store: AdapterStore) -> None:
    for adapter in ("opposites", store.resolve("opposites")[:8]):
        result = manytune("generate", "--adapter", adapter, "--store", "kept", "--field", "word=wet")
        assert (result.exit_code, result.stdout) == (0, "dry\n"), result.stderr


def test_names_come_from_the_store_of_the_environment(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANYTUNE_STORE", str(store.root))
    result = CliRunner().invoke(build_app(), ["chat", "--adapter", "opposites"], input="Opposite of hot :\n")
    assert (result.exit_code, result.stdout) == (0, "cold\n"), result.stderr


def test_an_evaluation_calls_adapters_by_their_names_and_keeps_their_scores_in_the_store(
    store: AdapterStore,
) -> None:
    found = evaluated("opposites", "team/poor", "--store", "kept", "--metrics", "exact_match")
    assert scores(found)["opposites", "exact_match"] == 1.0
    assert [result["name"] for result in found["results"]] == ["base", "opposites", "team/poor"]
    assert store.entry("opposites").manifest.scores["exact_match"] == 1.0
    assert found["written"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "x", "--adapter", "oposites", "--store", "kept"], "Did you mean 'opposites'?"),
        (["evaluate", "opposites"], "there is no store of adapters here. Name another one with --store"),
        (
            ["chat", "--adapter", "kept"],
            "this is a store of adapters; name one of them, and the store with --store",
        ),
    ],
)
def test_a_name_that_is_not_there_says_where_it_was_looked_for(
    store: AdapterStore, arguments: list[str], said: str
) -> None:
    result = manytune(*arguments)
    assert result.exit_code == 1 and said in " ".join(result.stderr.split())
