"""A forgetting budget: the learning rate with the lower loss isn't chosen if it ruins the probe."""

import json

import pytest
from tests.experiments.tiny_experiment import Reported, content

from manytune.errors import DataError, RecipeError
from manytune.experiments.compare import compare
from manytune.experiments.opening import open_workspace
from manytune.experiments.recipe import experiment_from
from manytune.experiments.runner import InTurn


def with_budget(directory, at_most, probe="texts.jsonl"):
    found = content(directory, systems={"LoRA": {"learning_rates": [1e-5, 0.3]}}, metrics=["chrf"], limit=3)
    found["forgetting"] |= {"probe": str(directory / probe), "at_most": at_most, "passages": 8, "probes": []}
    rows = [{"text": "abcdefghijklmnop"[k:] + "qrstuvwxyz abcdefgh" * 4} for k in range(8)]
    (directory / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return experiment_from(found)


def test_a_rate_that_forgets_too_much_is_not_chosen_and_nothing_is_asked_twice(tmp_path):
    strict, reported = with_budget(tmp_path, 0.001), Reported()
    evaluation = compare(open_workspace(strict, reported), InTurn())
    said = evaluation.result("LoRA").provenance["Learning rate"]
    assert said.startswith("1e-05, by validation loss among 1e-05 (") and "0.3 (" in said
    assert said.count("beyond the budget") == 1
    assert evaluation.budget.chosen == "LoRA" and evaluation.budget.at_most == 0.001
    again = Reported()
    assert compare(open_workspace(strict, again), InTurn()) == evaluation
    assert not any(line.startswith("asking") for line in again.lines)
    generous = compare(open_workspace(with_budget(tmp_path, 0.99), Reported()), InTurn())
    assert generous.result("LoRA").provenance["Learning rate"].startswith("0.3, by validation loss")


def test_half_a_budget_and_a_probe_without_a_form_are_refused(tmp_path):
    found = content(tmp_path)
    found["forgetting"]["at_most"] = 0.01
    with pytest.raises(RecipeError, match="forgetting: probe and at_most go together"):
        experiment_from(found)
    wanted = with_budget(tmp_path, 0.01, probe="odd.jsonl")
    (tmp_path / "odd.jsonl").write_text('{"q": "x"}\n')
    with pytest.raises(
        DataError, match=r"odd.jsonl:1: expected `text`, or `prompt` and `completion`.*found q"
    ):
        open_workspace(wanted, Reported())
