"""A chat template with today's date: a run keeps the date of its start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.training.tiny_run import adapter_digest, recipe_content

from manytune.errors import RecipeError, RunError
from manytune.store.adapters import open_adapter
from manytune.store.base import load_tokenizer
from manytune.training.dates import dated
from manytune.training.progress import Report, StepReport
from manytune.training.recipe import Recipe, load_recipe, recipe_from
from manytune.training.run import run

DATED = (
    "{{ strftime_now('%A') }} {% for m in messages %}{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}{% endif %}"
)


class StoppedError(Exception):
    pass


def stop(report: Report) -> None:
    if isinstance(report, StepReport) and report.step == 3:
        raise StoppedError


@pytest.fixture
def today(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the time."""

    def set_clock(time: str) -> None:
        for place in ("dates", "run"):
            monkeypatch.setattr(f"manytune.training.{place}.now", lambda: time)

    return set_clock


def recipe(tmp_path: Path, template: str = DATED, **data: Any) -> Recipe:
    content = recipe_content(tmp_path, max_steps=4)
    (tmp_path / "base" / "chat_template.jinja").write_text(template)
    return recipe_from({**content, "data": {**content["data"], **data}})


def test_a_run_is_resumed_on_the_next_day_with_the_rows_of_its_start(tmp_path: Path, today: Any) -> None:
    today("2026-03-05T17:04:00")
    whole = run(recipe(tmp_path / "whole"))
    parts = recipe(tmp_path / "parts")
    with pytest.raises(StoppedError):
        run(parts, report=stop)
    today("2026-03-06T09:00:00")
    finished = run(parts, resume=True)
    assert finished.resumed_from == 2
    assert adapter_digest(finished.adapter) == adapter_digest(whole.adapter)
    # The day does decide what is learned, so that the above isn't so by chance.
    assert adapter_digest(run(recipe(tmp_path / "later")).adapter) != adapter_digest(whole.adapter)


def test_the_runs_recipe_and_its_adapter_say_the_date(tmp_path: Path, today: Any) -> None:
    today("2026-03-05T17:04:00")
    finished = run(recipe(tmp_path))
    assert load_recipe(finished.directory / "recipe.yaml").data.date == "2026-03-05T17:04:00"
    manifest = open_adapter(finished.adapter).manifest
    assert manifest is not None
    assert manifest.encoding_options == {"date": "2026-03-05T17:04:00"}


def test_a_recipe_may_say_the_date_and_another_one_is_another_run(tmp_path: Path, today: Any) -> None:
    wanted = recipe(tmp_path, date="2024-07-26")
    today("2026-03-05T17:04:00")
    with pytest.raises(StoppedError):
        run(wanted, report=stop)
    assert load_recipe(tmp_path / "run" / "recipe.yaml").data.date == "2024-07-26"
    changed = wanted.model_copy(update={"data": wanted.data.model_copy(update={"date": "2024-07-27"})})
    with pytest.raises(RunError, match=r"data\.date was '2024-07-26' and is '2024-07-27'"):
        run(changed, resume=True)
    run(wanted, resume=True)


@pytest.mark.parametrize("data", [{}, {"chat": False}])
def test_without_a_date_in_what_is_trained_a_run_has_none(tmp_path: Path, data: dict[str, Any]) -> None:
    wanted = recipe(tmp_path, template=DATED if data else DATED.replace("strftime_now('%A')", "'a'"), **data)
    assert dated(wanted, load_tokenizer(wanted.base)) == wanted


def test_yamls_dates_are_dates_and_other_texts_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({"data": {"train": "x.jsonl"}}))
    assert load_recipe(file, ["data.date=2026-01-31"]).data.date == "2026-01-31"
    with pytest.raises(
        RecipeError, match=r"data\.date: expected a date such as 2026-01-31, found 'tomorrow'"
    ):
        load_recipe(file, ["data.date=tomorrow"])
    with pytest.raises(
        RecipeError, match=r"data\.date: expected a date such as 2026-01-31, or null; found 7"
    ):
        load_recipe(file, ["data.date=7"])
