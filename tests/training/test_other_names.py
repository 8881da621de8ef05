"""Names of other tools in a recipe: the message says what they are called here, and that key exists."""

import dataclasses
import typing

import pytest

from manytune import RecipeError
from manytune.methods.lora.config import LoraConfig
from manytune.training import other_names
from manytune.training.recipe import Recipe, load_recipe


@pytest.mark.parametrize("key", sorted(set(other_names._BY_NAME.values())))
def test_every_key_that_a_message_names_is_one(key):
    section, _, name = key.rpartition(".")
    if section == "method":
        assert name == "name" or name in {field.name for field in dataclasses.fields(LoraConfig)}
        return
    model = Recipe.model_fields[section].annotation if section else Recipe
    fields = typing.cast(typing.Any, model).model_fields
    assert name in fields
    assert not {other for other, here in other_names._BY_NAME.items() if here == key} & set(fields)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("training: {lr: 1}", "training.lr: there is no such key; 'lr' is training.learning_rate here."),
        ("lr: 1", "lr: there is no such key; 'lr' is training.learning_rate here."),
        ("method: {rank: 4}", "Method 'lora' has no option 'rank'; 'rank' is method.r here."),
        ("method: {lora_r: 4}", "'lora_r' is method.r here."),
        ("method: {lr: 1}", "'lr' is training.learning_rate here."),
        ("training: {num_train_epochs: 2}", "'num_train_epochs' is training.epochs here."),
        ("training: {bach_size: 2}", "did you mean 'batch_size'?"),
        ("method: {lora_alhpa: 2}", "Did you mean 'lora_alpha'?"),
        ("base: {{ x }}", "a value that begins with {{ is put in quotes, as in prompt: '{{ question }}'"),
    ],
)
def test_a_message_says_what_it_is_called_here(tmp_path, line, said):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"data: {{train: x.jsonl}}\n{line}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe)
    assert said in str(caught.value)
