"""Scores while a run trains: of validation rows alone, as `manytune evaluate` would give them, without a trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.training.tiny_run import adapter_digest, recipe_content

from manytune.data.dataset import Splits, read_splits
from manytune.data.templates import Example
from manytune.errors import DataError, RecipeError
from manytune.evaluation.answers import questions_from
from manytune.evaluation.metrics import metrics_named
from manytune.experiments.answering import Decoding, ask_model
from manytune.experiments.score_names import check_scores
from manytune.experiments.validation_scores import spread, validation_scores
from manytune.store.attaching import attached
from manytune.store.base import load_base
from manytune.store.run_directory import RunDirectory
from manytune.training import inputs as inputs_module
from manytune.training.recipe import recipe_from
from manytune.training.run import TrainedRun, run


class Untouchable(tuple[Example, ...]):
    """Rows that nothing may look at."""

    def __iter__(self) -> Iterator[Example]:
        raise AssertionError("a test row was read")

    def __getitem__(self, place: Any) -> Any:
        raise AssertionError("a test row was read")

    def __len__(self) -> int:
        raise AssertionError("a test row was read")


SCORED = {"scores": ["chrf", "perplexity"], "max_new_tokens": 4}


def trained(directory: Path, method: dict[str, Any] | None = None, **training: Any) -> TrainedRun:
    content = recipe_content(directory, epochs=1, eval_every=3, **training)
    content["data"]["test"] = 0.25
    if method:
        content["method"] = method
    return run(recipe_from(content), scorer=validation_scores)


def test_a_run_that_scores_and_keeps_the_best_step_reads_no_test_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def guarded(*args: Any) -> Splits:
        return dataclasses.replace(read_splits(*args), test=Untouchable())

    monkeypatch.setattr(inputs_module, "read_splits", guarded)
    finished = trained(
        tmp_path, validation=SCORED, keep="best", best_metric="chrf", early_stopping={"patience": 9}
    )
    kept = RunDirectory(finished.directory).read_scores().kept
    assert kept is not None
    assert set(kept["scores"]) == {"chrf", "perplexity"}


LORA: dict[str, Any] = {"name": "lora", "r": 2, "lora_dropout": 0.1, "target_modules": "all-linear"}


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        (LORA, "float32"),
        (LORA, "bfloat16"),
        ({"name": "prompt-tuning", "num_virtual_tokens": 2}, "float32"),  # which the engine doesn't run
    ],
    ids=["lora", "bfloat16", "soft prompt"],
)
def test_the_scores_are_those_of_the_saved_adapter_and_leave_no_trace(
    tmp_path: Path, method: dict[str, Any], dtype: str
) -> None:
    finished = trained(tmp_path / "scored", method, validation=SCORED, dtype=dtype)
    without = trained(tmp_path / "plain", method, dtype=dtype)
    assert adapter_digest(finished.adapter) == adapter_digest(without.adapter)

    recipe = recipe_from(recipe_content(tmp_path / "scored") | {"method": method})
    base = load_base(recipe.base, dtype=dtype)
    data = recipe.data.model_copy(update={"test": 0.25})
    encoder = data.encoder(base.tokenizer)
    questions = questions_from(read_splits(data).validation, encoder)
    with attached(base, finished.adapter) as model:
        decoding = Decoding(max_new_tokens=4, batch_size=24, end_ids=(encoder.end_id,))
        answers = ask_model(model, base.tokenizer, questions, decoding, likelihoods=True)
    references = [question.item.references for question in questions]
    expected = {
        metric.name: float(metric.aggregate(metric.statistics(answers, references).sum(axis=0)))
        for metric in metrics_named(["chrf", "perplexity"])
    }
    last = finished.training.validation_reports[-1]
    assert last.scores == pytest.approx(expected, rel=1e-6)


def test_the_sample_is_bounded_and_spread_over_the_rows() -> None:
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 4) == [0, 1, 2]


def test_an_unknown_score_is_refused_with_the_nearest(tmp_path: Path) -> None:
    content = recipe_content(tmp_path, validation={"scores": ["rogue1"]})
    with pytest.raises(RecipeError, match="found 'rogue1'; did you mean 'rouge1'"):
        check_scores(recipe_from(content))


def test_running_text_has_no_answers_to_score(tmp_path: Path) -> None:
    content = recipe_content(tmp_path, validation={"scores": ["chrf"]})
    for key in ("prompt", "completion"):
        del content["data"][key]
    with pytest.raises(DataError, match="running text, to which there are none"):
        run(recipe_from({**content, "data": {**content["data"], "format": "text"}}), scorer=validation_scores)
