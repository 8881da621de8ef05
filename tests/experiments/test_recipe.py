from pathlib import Path

import pytest
from tests.experiments.tiny_experiment import content

from manytune.errors import RecipeError
from manytune.experiments.recipe import default_learning_rates, experiment_from, load_experiment


def test_a_training_recipe_with_test_rows_is_an_experiment(tmp_path):
    found = content(tmp_path)
    del found["compare"], found["forgetting"]
    experiment = experiment_from(found)
    systems = experiment.systems()
    assert list(systems) == ["full", "lora"]
    assert experiment.method_of(systems["lora"]).peft_config().r == 2
    assert experiment.rates_of(systems["full"]) == (3e-5, 1e-4, 3e-4)
    assert experiment.rates_of(systems["lora"]) == (3e-4, 1e-3, 3e-3)  # ten times as high


def test_full_fine_tuning_as_the_recipes_method_is_the_reference_with_its_options(tmp_path):
    found = content(tmp_path) | {"method": {"name": "full", "keep_base": False}}
    del found["compare"], found["forgetting"]
    systems = experiment_from(found).systems()
    assert list(systems) == ["full"]
    assert not systems["full"].method.peft_config().keep_base


def test_rates_of_methods_without_a_habit_are_loras():
    assert default_learning_rates("bottleneck") == default_learning_rates("lora")
    assert default_learning_rates("prompt-tuning") == (0.009, 0.03, 0.09)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["compare"].update(sedes=[1]),
            r"compare.sedes: there is no such key; did you mean 'seeds'",
        ),
        (
            lambda c: c["compare"]["systems"]["LoRA"].update(rehears=0.2),
            r"compare.systems.LoRA.rehears: there is no such key; did you mean 'rehearse'",
        ),
        (lambda c: c["compare"].update(metrics=["rouge9"]), "found 'rouge9'; did you mean 'rouge"),
        (lambda c: c["compare"].update(systems={"base": {}}), "the name 'base' is the untouched base's"),
        (lambda c: c["compare"]["systems"]["LoRA"].update(per_task=True), "per_task: data.train is one task"),
        (
            lambda c: c["compare"]["systems"]["LoRA"].update(per_task=True, rehearse=0.1),
            "give either per_task or rehearse",
        ),
        (lambda c: c["compare"].update(limit=0), "compare.limit: .*greater than or equal to 1; found 0"),
        (
            lambda c: c["forgetting"]["probes"].append({"name": "x", "file": "y"}),
            "give either text, or prompt",
        ),
        (lambda c: c["data"].update(test=None), "data.test: a comparison needs test rows"),
        (lambda c: c["data"].update(validation=None), "data.validation: the learning rate is chosen on"),
        (lambda c: c["training"].update(epoch=1), "training.epoch: there is no such key"),
        (
            lambda c: c["compare"]["systems"].update(x={"method": {"name": "lore"}}),
            "Unknown method 'lore'. Did you mean 'lora'",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path, change, message):
    found = content(tmp_path)
    change(found)
    with pytest.raises(RecipeError, match=message):
        experiment_from(found, where="recipe.yaml")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "examples/results").glob("*.yaml")))
def test_the_recipes_of_the_results_page_are_recipes(path):
    assert "full" in load_experiment(path).systems()
