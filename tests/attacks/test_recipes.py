"""Whatever a recipe says, it is read, or refused in a sentence that names the file."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.attacks.mutation import cases, mutated

from manytune.errors import RecipeError
from manytune.experiments.recipe import load_experiment
from manytune.training.recipe import Recipe, load_recipe, recipe_from

RECIPE: dict[str, Any] = {
    "base": "tiny",
    "data": {
        "train": [{"name": "one", "file": "rows.jsonl", "prompt": "{{ a }}", "completion": "{{ b }}"}],
        "validation": 0.1,
        "test": 0.2,
        "max_length": 512,
    },
    "method": {
        "name": "lora",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {},
    },
    "training": {
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "dtype": "auto",
    },
    "compare": {"systems": {"full": {"method": {"name": "full"}, "learning_rates": [1e-4]}}, "seeds": [0, 1]},
    "forgetting": {"passages": 3},
    "output": "runs/one",
}
SIMPLE: dict[str, Any] = {
    "base": "tiny",
    "data": {"train": "rows.jsonl", "prompt": "{{ a }}", "completion": "{{ b }}"},
    "method": {"name": "lora"},
    "output": "runs/one",
}
SCALARS = [
    "2001-13-45",
    "12:99:99",
    "0x",
    "0o9",
    "1_0__0",
    ".inf",
    "-.nan",
    "9" * 5000,
    "!!int abc",
    "!!timestamp no",
    "!!binary ===",
    "!!python/object/apply:os.system ['true']",
    "!!float [1]",
    "!!set {a, b}",
    "!!omap [a]",
    "*nobody",
    "&a [*a]",
    "? [1, 2]\n: 3",
    "{[1]: 2}",
    "<<: 3",
    "@",
    "`",
    "%x",
    "\x07",
    "\ud83d",
    "- -",
    "|-\n",
    ">",
    "\t",
    "'",
    '"\\ud800"',
    '"\\xZZ"',
    "!!null a",
    "!!bool 3",
    "=",
    "!",
    "!<tag:yaml.org,2002:str> x",
    "2001-01-01T99:99:99Z",
]


def laughs(draw: random.Random) -> str:
    """A billion of them."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, draw.choice([3, 9, 30]))]
    return "\n".join(lines) + "\n"


def scalar_replaced(draw: random.Random, text: str) -> str:
    lines = text.splitlines()
    number = draw.randrange(len(lines))
    lines[number] = lines[number].partition(":")[0] + ": " + draw.choice(SCALARS)
    return "\n".join(lines)


def bytes_changed(draw: random.Random, text: str) -> str:
    content = list(text)
    for _ in range(draw.choice([1, 3, 20])):
        content[draw.randrange(len(content))] = draw.choice("\x00\t{}[]:,&*!|>'\"%@`#-?\ufeff\u2028a1 \n")
    return "".join(content)


TEXTUAL: list[Callable[[random.Random, str], str]] = [
    scalar_replaced,
    scalar_replaced,
    bytes_changed,
    lambda draw, text: text[: draw.randrange(len(text))],
    lambda draw, text: laughs(draw) + text,
    lambda draw, text: text + draw.choice(text.splitlines()) + "\n",
    lambda draw, text: text + "x: " + "[" * draw.choice([10, 5000, 200_000]),
    lambda draw, text: text + "".join(f"{' ' * depth}k:\n" for depth in range(draw.choice([50, 1500]))),
]


@pytest.mark.timeout(900)
def test_any_recipe_is_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    read = refused = 0
    for case, draw in cases(50):
        recipe = draw.choice([RECIPE, SIMPLE])
        tree = mutated(draw, recipe) if draw.random() < 0.6 else recipe
        if tree is recipe:
            text = draw.choice(TEXTUAL)(draw, yaml.safe_dump(tree, sort_keys=False))
        else:
            text = json.dumps(tree, ensure_ascii=draw.random() < 0.5)  # which is YAML, and knows no recursion
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            found = load(file)
        except RecipeError as error:
            message = str(error)
            assert str(file) in message and len(message) < 20_000, (case, message[:200])
            refused += 1
            continue
        except BaseException as error:
            raise AssertionError(f"case {case}: {type(error).__name__}: {error}\n{text[:2000]}") from error
        assert same_again(found), case
        read += 1
    assert read and refused
    print(f"\n{read + refused} recipes: {read} read, {refused} refused")


def load(file: Path) -> Recipe:
    """The recipe that a training or a comparison reads."""
    if b"compare" in file.read_bytes():
        return load_experiment(file).recipe
    return load_recipe(file)


def same_again(recipe: Recipe) -> bool:
    return recipe_from(yaml.safe_load(recipe.to_yaml())).to_yaml() == recipe.to_yaml()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("method: {name: lora, rank_pattern: abc}", "rank_pattern: expected dict"),
        ("method: {name: lora, alpha_pattern: {q_proj: abc}}", "alpha_pattern: expected dict"),
        ("method: {name: lora, lora_alpha: .nan}", "lora_alpha: expected float; found nan"),
        ("method: {name: ia3, init_ia3_weights: true, modules_to_save: 3}", "modules_to_save"),
        (
            "method: {name: prefix-tuning, num_virtual_tokens: 4, encoder_hidden_size: 1.0e+308}",
            "expected int",
        ),
        ("method: {name: prefix-tuning, num_virtual_tokens: 4, prefix_projection: {a: 1}}", "expected bool"),
        (
            "method: {name: prefix-tuning, num_virtual_tokens: 4, encoder_hidden_size: -1}",
            "a positive integer",
        ),
        ("method: {name: p-tuning, num_virtual_tokens: 4, encoder_hidden_size: -1}", "a positive integer"),
        ("method: {name: p-tuning, num_virtual_tokens: 4, encoder_num_layers: 0}", "a positive integer"),
        ("method: {name: bottleneck, scaling: .inf}", "scaling: expected float; found inf"),
        ("task: 2001-13-45", "recipe.yaml:1: this isn't valid YAML: timestamp that can't be read"),
        ("task: !!bool 3", "recipe.yaml:1: this isn't valid YAML: bool that can't be read"),
        ("task: " + "9" * 5000, "recipe.yaml:1: this isn't valid YAML: int that can't be read"),
        ("? [1, 2]\n: 3", "a key is one word or number"),
        ("x: " + "[" * 100_000, "nested too deeply"),
        ("# " + "x" * (1 << 20), "a recipe of at most 1,048,576 bytes"),
    ],
    ids=lambda text: text[:30],
)
def test_a_value_that_ended_in_a_traceback_is_a_sentence(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "recipe.yaml"
    content = {key: value for key, value in SIMPLE.items() if not line.startswith(key)}
    file.write_text(f"{line}\n{yaml.safe_dump(content)}")
    with pytest.raises(RecipeError, match=re.escape(said)):
        load_recipe(file)


def test_of_thousands_of_mistakes_the_first_are_listed(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_from({**SIMPLE, **{f"key{number}": 1 for number in range(5000)}})
    assert "there are 4,980 more mistakes" in str(caught.value) and len(str(caught.value)) < 5000
