"""QLoRA from a recipe to a served answer, with HF PEFT on transformers' own packed base as the oracle."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from fastapi.testclient import TestClient
from tests.packed import KINDS, installed, pack, save_base, save_packed
from tests.random_cases import some
from tests.reference import plain_training_loop
from tests.server.world import app_of
from tests.training.tiny_run import adapter_digest, as_rows, sequences, settings, write_rows
from typer.testing import CliRunner

from manytune import LoraConfig, PeftWarning, get_peft_model
from manytune.cli.main import build_app
from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.errors import ConfigError, RecipeError
from manytune.experiments.recipe import experiment_from
from manytune.store.base import Base, load_base
from manytune.store.resident import read_resident
from manytune.store.run_log import Report, StepReport
from manytune.store.store import AdapterStore
from manytune.training.dry_run import estimate
from manytune.training.loop.train import train_model
from manytune.training.recipe import Recipe, recipe_from
from manytune.training.run import TrainedRun, run
from manytune.training.speed.required_flops import ModelSize

#: How a recipe's base is packed: by the recipe, or by whoever stored it.
FORMS = ["nf4", "int8", "bitsandbytes-4bit", "bitsandbytes-8bit"]
LIBRARY = {"nf4": "bitsandbytes", "int8": "torchao"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("unpacked"))


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    installed(LIBRARY.get(request.param, request.param))
    return str(request.param)


@pytest.fixture(scope="module")
def trained(form: str, unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return run(recipe(form, unpacked, tmp_path_factory.mktemp(form)))


def recipe(form: str, unpacked: Path, directory: Path, **changes: Any) -> Recipe:
    return recipe_from(content(form, unpacked, directory, **changes))


def content(form: str, unpacked: Path, directory: Path, **changes: Any) -> dict[str, Any]:
    base, weights = unpacked, form
    if form not in LIBRARY:
        base, weights = directory / "base", None  # type: ignore[assignment]
        if not base.exists():
            save_packed(form, unpacked, base)
    rows = str(write_rows(directory / "rows.jsonl", 12))
    return {
        "base": str(base),
        "weights": weights,
        "data": {
            "train": rows,
            "validation": rows,
            "test": rows,
            "prompt": "{{ text }}",
            "completion": "{{ answer }}",
        },
        "method": {"name": "lora", "r": 2, "lora_dropout": 0.1, "target_modules": "all-linear"},
        "training": {"max_steps": 5, "batch_size": 4, "learning_rate": 0.01, "checkpoint_every": 2},
        "output": str(directory / "run"),
        **changes,
    }


def base_of(trained: TrainedRun) -> Base:
    recipe = recipe_from(json.loads((trained.adapter / "manifest.json").read_text())["recipe"])
    return load_base(recipe.base, weights=recipe.weights)


def stepwise(engine: Engine, *adapters: str | None) -> dict[str | None, tuple[int, ...]]:
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    found = engine.generate([Request(str(name), (5, 9, 12, 7), params, name) for name in adapters])
    return {name: completion.token_ids for name, completion in zip(adapters, found, strict=True)}


def test_a_recipe_trains_on_a_packed_base(trained: TrainedRun) -> None:
    first, *_, last = trained.training.validation_reports
    assert last.validation_loss < first.validation_loss - 0.05


def test_the_dry_run_of_a_recipe_says_what_its_training_says(
    form: str, trained: TrainedRun, unpacked: Path
) -> None:
    expected = estimate(recipe(form, unpacked, trained.directory.parent))
    assert expected.steps == trained.training.steps
    assert expected.trainable_parameters == trained.training.trainable_parameters
    assert expected.all_parameters == trained.training.all_parameters
    # As many as on the base that was packed: packed weights count as what is in them.
    plain = sum(p.numel() for p in load_base(str(unpacked)).model.parameters())
    assert trained.training.all_parameters == plain + trained.training.trainable_parameters


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_base_needs_the_flops_of_the_base_that_was_packed(kind: str, unpacked: Path) -> None:
    installed(kind)
    sizes = [
        ModelSize.of(get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")))
        for model in (pack(kind, unpacked), load_base(str(unpacked)).model)
    ]
    assert sizes[0] == sizes[1]


def test_training_goes_where_no_peft_is_installed(
    unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' Trainer takes a packed base with HF PEFT's adapters on it, or with those that it can't know."""
    form = "bitsandbytes-4bit"
    installed(form)
    monkeypatch.setattr("transformers.trainer_utils.is_peft_available", lambda: False)
    monkeypatch.delitem(sys.modules, "peft")
    assert run(recipe(form, unpacked, tmp_path)).training.steps == 5


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("form", some(FORMS, "bitsandbytes-4bit", "int8"), indirect=True, scope="module")
def test_an_interrupted_run_resumes_to_the_same_bits(
    form: str, trained: TrainedRun, unpacked: Path, tmp_path: Path
) -> None:
    def stop(report: Report) -> None:
        if isinstance(report, StepReport) and report.step == 4:
            raise StoppedError

    same = recipe(form, unpacked, tmp_path)
    with pytest.raises(StoppedError):
        run(same, report=stop)
    resumed = run(same, resume=True)
    assert resumed.resumed_from == 2
    assert adapter_digest(resumed.adapter) == adapter_digest(trained.adapter)


@pytest.mark.parametrize("kind", ["bitsandbytes-4bit", "torchao-int8"])
def test_training_takes_the_steps_of_hf_peft_in_a_textbook_loop(kind: str, unpacked: Path) -> None:
    installed(kind)
    options: dict[str, Any] = {
        "r": 2,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
    }
    torch.manual_seed(0)
    model = get_peft_model(pack(kind, unpacked), LoraConfig(**options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        twin = peft.get_peft_model(pack(kind, unpacked), peft.LoraConfig(**options))
    rows = sequences(9)
    changes: dict[str, Any] = {"warmup": 0.0, "lr_scheduler": "constant", "max_grad_norm": 0.5}
    result = train_model(model, as_rows(rows), settings(**changes))
    windows = []
    for epoch in (0, 1):
        order = np.random.default_rng([0, epoch]).permutation(9)
        windows += [[rows[place] for place in order[start : start + 3]] for start in (0, 3, 6)]
    losses = plain_training_loop.train(twin, windows, learning_rates=[0.01] * 6, max_grad_norm=0.5)
    assert [report.loss for report in result.step_reports] == pytest.approx(losses, rel=1e-5)


def test_the_adapter_answers_as_in_hf_peft(form: str, trained: TrainedRun, unpacked: Path) -> None:
    base = base_of(trained)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = load_base(base.name, weights=form if form in LIBRARY else None).model  # type: ignore[arg-type]
        model = peft.PeftModel.from_pretrained(theirs, trained.adapter).eval()
    prompt = torch.tensor([[5, 9, 12, 7]])
    found = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
    )
    engine = Engine(base.model, base.tokenizer, EngineOptions(weights="plain"))
    engine.add_adapter("run", read_resident(trained.adapter))
    assert stepwise(engine, "run")["run"] == tuple(found[0, 4:].tolist())


@pytest.mark.parametrize("weights", ["plain", "reordered"])
def test_a_mixed_batch_gives_each_the_answer_that_it_has_alone(trained: TrainedRun, weights: Any) -> None:
    base = base_of(trained)
    engine = Engine(base.model, base.tokenizer, EngineOptions(weights=weights))
    engine.add_adapter("run", read_resident(trained.adapter))
    engine.add_adapter("again", read_resident(trained.adapter))
    mixed = stepwise(engine, "run", None, "again")
    assert mixed["run"] == mixed["again"] == stepwise(engine, "run")["run"]
    assert mixed[None] == stepwise(engine, None)[None]
    assert mixed[None] != mixed["run"]


@pytest.mark.parametrize("weights", ["int8"])
def test_the_engine_rounds_nothing_that_is_packed(trained: TrainedRun, weights: Any) -> None:
    base = base_of(trained)
    with pytest.raises(
        ConfigError, match=rf"weights='{weights}': .* packed by \w+ already. Use weights='plain'"
    ):
        Engine(base.model, base.tokenizer, EngineOptions(weights=weights))


def test_a_server_answers_over_the_packed_base(trained: TrainedRun, tmp_path: Path) -> None:
    base = base_of(trained)
    store = AdapterStore(tmp_path / "store")
    store.add(trained.adapter, name="run", base=base)
    with TestClient(app_of(base, store), base_url="http://localhost") as client:
        listed = {one["id"] for one in client.get("/v1/models").json()["data"]}
        assert listed == {"base", "run"}
        bodies = [{"model": model, "prompt": "abc", "max_tokens": 6} for model in ("run", "base")]
        replies = [client.post("/v1/completions", json=body) for body in bodies]
    assert [reply.status_code for reply in replies] == [200, 200]
    texts = [reply.json()["choices"][0]["text"] for reply in replies]
    assert texts[0] != texts[1]


def test_a_server_over_the_base_that_was_packed_takes_the_adapter_and_says_so(
    trained: TrainedRun, unpacked: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = load_base(str(unpacked))
    store = AdapterStore(tmp_path / "store")
    with pytest.warns(PeftWarning, match="here the base is unpacked"):
        store.add(trained.adapter, name="run", base=base)
    with TestClient(app_of(base, store), base_url="http://localhost") as client:
        assert {one["id"] for one in client.get("/v1/models").json()["data"]} == {"base", "run"}
        reply = client.post("/v1/completions", json={"model": "run", "prompt": "abc", "max_tokens": 3})
    assert reply.status_code == 200
    assert any("answers differ by what packing rounds" in record.getMessage() for record in caplog.records)


def test_the_command_line_evaluates_and_generates_on_the_base_as_it_was_packed_in_training(
    trained: TrainedRun,
) -> None:
    """No warning says that the base is packed otherwise, as warnings are errors here."""
    calls = CliRunner()
    answer = calls.invoke(
        build_app(),
        ["generate", "abc", "--adapter", str(trained.directory), "--max-new-tokens", "3", "--json"],
    )
    assert answer.exit_code == 0, answer.output
    scored = calls.invoke(
        build_app(),
        [
            "evaluate",
            str(trained.directory),
            "--limit",
            "3",
            "--max-new-tokens",
            "3",
            "--metrics",
            "perplexity",
        ],
    )
    assert scored.exit_code == 0, scored.output


def test_full_fine_tuning_of_a_packed_base_is_refused_before_a_comparison_begins(
    unpacked: Path, tmp_path: Path
) -> None:
    whole = content("nf4", unpacked, tmp_path)
    assert list(experiment_from(whole).systems()) == ["lora"]
    assert list(experiment_from({**whole, "weights": None}).systems()) == ["full", "lora"]
    asked = {**whole, "compare": {"systems": {"all of it": {"method": {"name": "full"}}}}}
    with pytest.raises(RecipeError, match=r"compare.systems.all of it: .*full.*weights: nf4"):
        experiment_from(asked)


def test_an_unknown_packing_is_named_with_the_known_ones(unpacked: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"weights: expected 'nf4' or 'int8'; found 'nf5'.*nf4"):
        recipe("nf4", unpacked, tmp_path, weights="nf5")
