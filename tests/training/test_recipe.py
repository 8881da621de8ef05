from __future__ import annotations

from pathlib import Path

import pytest

from manytune.data.section import description_of
from manytune.errors import RecipeError
from manytune.methods.lora.config import LoraConfig
from manytune.training.batches import BUILDERS
from manytune.training.choices import LAYOUTS
from manytune.training.recipe import Recipe, load_recipe, outline_from, recipe_from

FULL = """
base: some-org/some-model
data:
  train: [a.jsonl, b.csv]
  validation: dev.jsonl
  prompt: "Summarize.\\n\\n{{ document }}"
  completion: "{{ summary }}"
  group_by: paper
method: {name: lora, r: 4, lora_alpha: 16, target_modules: all-linear}
training: {epochs: 2, batch_size: 4, learning_rate: 2e-4, seed: 7}
output: runs/mine
"""


def recipe(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    (tmp_path / "my-task.yaml").write_text(text)
    return load_recipe(tmp_path / "my-task.yaml", overrides)


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe(tmp_path, text, *overrides)
    return str(caught.value)


def test_a_full_recipe_is_read(tmp_path: Path) -> None:
    read = recipe(tmp_path, FULL)
    assert read.base == "some-org/some-model"
    assert read.data.train == ("a.jsonl", "b.csv")
    assert read.data.validation == "dev.jsonl"
    assert read.data.prompt_template().group_by == "paper"
    assert read.output == "runs/mine"
    config = read.method.peft_config()
    assert isinstance(config, LoraConfig)
    assert (config.r, config.lora_alpha, config.target_modules) == (4, 16, "all-linear")
    assert config.task_type == "CAUSAL_LM"


def test_only_the_training_rows_have_no_default(tmp_path: Path) -> None:
    read = recipe(tmp_path, "data: {train: a.jsonl}")
    assert read.base == "embedded"
    assert read.output == "runs/my-task"
    assert read.method.name == "lora"
    assert read.data.prompt_template().completion == "{{ completion }}"
    assert "data.train: this key is missing" in refusal(tmp_path, "data: {}")


@pytest.mark.parametrize(
    ("text", "number"), [("2e-4", 0.0002), ("1E-3", 0.001), (".5e-3", 0.0005), ("1", 1.0)]
)
def test_numbers_are_read_as_people_write_them(tmp_path: Path, text: str, number: float) -> None:
    # YAML 1.1, which PyYAML follows, takes 2e-4 for text.
    read = recipe(tmp_path, f"data: {{train: a}}\ntraining: {{learning_rate: {text}}}")
    assert read.training.learning_rate == number


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    original = recipe(tmp_path, FULL)
    assert recipe(tmp_path, original.to_yaml()) == original


def test_overrides_are_applied_in_order_and_may_open_a_section(tmp_path: Path) -> None:
    read = recipe(
        tmp_path,
        "data: {train: a}",
        "training.epochs=5",
        "training.epochs=6",
        "method.r=2",
        "data.validation=null",
    )
    assert read.training.epochs == 6
    assert read.data.validation is None
    config = read.method.peft_config()
    assert isinstance(config, LoraConfig)
    assert config.r == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "--set epochs: expected section.key=value, as in training.learning_rate=1e-4"),
        ("=3", "--set =3: expected section.key=value"),
        ("data.train.x=1", "--set data.train.x=1: data.train holds a value"),
        ("training.epochs=[", "--set training.epochs=[: the value isn't valid YAML"),
    ],
)
def test_a_broken_override_is_named(tmp_path: Path, override: str, message: str) -> None:
    assert message in refusal(tmp_path, "data: {train: a}", override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bsae: x\ndata: {train: a}", "bsae: there is no such key; did you mean 'base'?"),
        ("data: {train: a, promt: x}", "data.promt: there is no such key; did you mean 'prompt'?"),
        (
            "data: {train: a}\ntraining: {lerning_rate: 1}",
            "training.lerning_rate: there is no such key; did you mean 'learning_rate'?",
        ),
        ("data: {train: a}\nmethod: {name: lroa}", "method: Unknown method 'lroa'. Did you mean 'lora'?"),
        ("data: {train: a}\nmethod: {lora_alhpa: 3}", "Did you mean 'lora_alpha'?"),
        ("data: {train: a}\nmethod: {r: x}", "method: `r` should be a positive integer"),
        (
            "data: {train: a}\nmethod: lora",
            "method: expected a section with the keys name; found 'lora' (text)",
        ),
        (
            "data: {train: a}\ntraining: {epochs: three}",
            "training.epochs: expected a number; found 'three' (text)",
        ),
        (
            "data: {train: a}\ntraining: {epochs: 0}",
            "training.epochs: expected a number greater than 0; found 0",
        ),
        (
            "data: {train: a}\ntraining: {batch_size: 2.5}",
            "training.batch_size: expected a whole number; found 2.5",
        ),
        (
            "data: {train: a}\ntraining: {seed: true}",
            "training.seed: expected a whole number; found True (true or false)",
        ),
        (
            "data: {train: a}\ntraining: {tensorboard: 1}",
            "training.tensorboard: expected true or false; found 1",
        ),
        (
            "data: {train: a}\ntraining: {lr_scheduler: consine}",
            "constant_with_warmup, reduce_lr_on_plateau; found 'consine'; did you mean 'cosine'?",
        ),
        (
            "data: {train: a}\ntraining: {optimizer: adamw_8bits}",
            "training.optimizer: expected one of adamw, adamw_torch_fused",
        ),
        ("data: {train: a}\ntraining: {optimizer: adafctor}", "did you mean 'adafactor'?"),
        (
            "data: {train: a}\ntraining: {optimizer: sgd, optimizer_options: {momentun: 0.9}}",
            "training: optimizer sgd has no option 'momentun'; it has momentum, dampening, nesterov; did you mean "
            "'momentum'?",
        ),
        (
            "data: {train: a}\ntraining: {optimizer_options: {betas: 3}}",
            "training: optimizer_options.betas: expected a list of 2 numbers from 0 to less than 1, such as "
            "[0.9, 0.999]; found 3 (a whole number)",
        ),
        (
            "data: {train: a}\ntraining: {optimizer: ademamix, optimizer_options: {betas: [0.9, 0.99]}}",
            "training: optimizer_options.betas: expected a list of 3 numbers",
        ),
        (
            "data: {train: a}\ntraining: {optimizer: adafactor, optimizer_options: {eps: .inf}}",
            "training.optimizer_options: expected what JSON can hold",
        ),
        (
            "data: {train: a}\ntraining: {lr_scheduler: cosine, lr_scheduler_options: {num_cycles: two}}",
            "training: lr_scheduler_options.num_cycles: expected a number of at least 0; found 'two' (text)",
        ),
        (
            "data: {train: a}\nmethod: {name: prefix-tuning}",
            "method: num_virtual_tokens should be a positive integer, such as 20; found nothing",
        ),
        (
            "data: {train: a}\ntraining: {lr_scheduler: linear, lr_scheduler_options: {power: 2}}",
            "training: lr_scheduler linear has no option 'power'; it has none",
        ),
        (
            "data: {train: a}\ntraining: {lr_scheduler: cosine_with_min_lr}",
            "training: lr_scheduler cosine_with_min_lr needs one of min_lr and min_lr_rate in lr_scheduler_options",
        ),
        (
            "data: {train: a}\ntraining: {lr_scheduler: reduce_lr_on_plateau}",
            "training: lr_scheduler reduce_lr_on_plateau has no warm-up; set warmup to 0",
        ),
        (
            "data: {train: a}\ntraining: {lora_fa: true, loraplus_lr_ratio: 16}",
            "training: loraplus_lr_ratio sets B's rate relative to A's, and lora_fa doesn't train A",
        ),
        (
            "data: {train: a}\ntraining: {batching: paded}",
            "training.batching: expected one of padded, padding-free, shared-prefix; found 'paded'; "
            "did you mean 'padded'?",
        ),
        ("data: {train: 5}", "data.train: expected a file or a datasets name, or a list of them; found 5"),
        ("data: {train: []}", "data.train: expected a file or a datasets name, or a list of them; found []"),
        (
            "data: {train: a, validation: 1.5}",
            "data.validation: expected a file, a datasets name, or a share",
        ),
        ("data: {train: a, validation: 0.6, test: 0.5}", "data: validation and test take 1.1 of the rows"),
        ("data: {train: a, prompt: x}", "data: prompt and completion go together; the completion is missing"),
        (
            "data: {train: a, prompt: x, template: alpaca}",
            "data: give either a template, or prompt and completion",
        ),
        ("data: {train: a, template: alpca}", "data: no template is named 'alpca'; did you mean 'alpaca'?"),
        (
            "data: {train: a, prompt: '{{ x', completion: '{{ y }}'}",
            "the prompt template, line 1, isn't valid",
        ),
        ("data: [", ":1: this isn't valid YAML"),
        ("base: a\nbase: b", ":2: this isn't valid YAML: the key 'base' is given twice"),
        (
            "",
            "a recipe is a mapping with the keys base, weights, task, data, method, adapter, training, output; "
            "found nothing",
        ),
        (
            "- a",
            "a recipe is a mapping with the keys base, weights, task, data, method, adapter, training, output; "
            "found ['a'] (a list)",
        ),
    ],
)
def test_a_mistake_is_answered_with_the_file_the_key_and_what_was_expected(
    tmp_path: Path, text: str, message: str
) -> None:
    answer = refusal(tmp_path, text)
    assert answer.startswith(str(tmp_path / "my-task.yaml"))
    assert message in answer


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    answer = refusal(tmp_path, "bsae: x\ndata: {train: a}\ntraining: {epochs: -1, batch_size: 0}")
    assert len(answer.splitlines()) == 3


def test_a_recipe_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"absent\.yaml: there is no such file\. `manytune init FILE` writes"
    ):
        load_recipe(tmp_path / "absent.yaml")
    (tmp_path / "absent.yml").touch()
    with pytest.raises(RecipeError, match=r"no such file; did you mean '.*absent\.yml'\?"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match=r"this is a directory; name the recipe's file, such as"):
        load_recipe(tmp_path)
    (tmp_path / "absent.yml").write_text("base: é", "latin-1")
    with pytest.raises(RecipeError, match=r"a recipe is text in UTF-8, and this file isn't"):
        load_recipe(tmp_path / "absent.yml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: a: b", "put a value with a colon and a space in it in quotes"),
        ("data:\n\ttrain: x", "indent with spaces"),
        ("prompt: {{ a }} b", "that begins with {{ or with a quote in quotes as a whole"),
        ("prompt: {{ fields['a'] }}", "put a value with {{ in it in quotes"),
        ('prompt: "a', "close the quote"),
        ("prompt: @a", "put a value that begins with this character in quotes"),
        ("prompt: |\nx\n", "indent a text under `|` further than its key"),
        ("prompt: *a", "put a value that begins with * in quotes"),
        ("base: “b”", "write straight ones"),
        ("data: {prompt: «a»}", "write straight ones"),
        ("“base”: b", ":1: this isn't valid YAML: “ and ” are no quotes in YAML"),
        ('base: "b”\noutput: c', "line 1 has a typographic quote"),
        ("base: b\u00a0", "'b' has a no-break space (U+00A0) next to it; remove it"),
        ("base: \u200bb", "'b' has a zero-width space (U+200B) next to it; remove it"),
        ('data: {train: "C:\\data.csv"}', "use single quotes, or / in a path"),
        ("data:\n  train: - a.csv", "begin a list in the line below its key, or write it as [a, b]"),
        (
            "base: no\ndata: {train: a.csv}",
            "found False (true or false); YAML reads yes, no, on and off like that",
        ),
        ("base: [a]\ndata: {train: a.csv}", "found ['a'] (a list); write one text, without brackets"),
        ("base: 7\ndata: {train: a.csv}", "found 7 (a whole number); put it in quotes"),
        ("training: {max_steps: '1,000'}", "write 1000, without separators"),
        ("training: {max_steps: 1e3}", "found 1000.0 (a number); write 1000."),
        ("training: {max_steps: None}", "found 'None' (text); write null for none"),
        ("training: {batch_size: 100000000000000000000000000}", "less than or equal to 1099511627776"),
        ("training: {epochs: 1e300}", "less than or equal to 1000000"),
        ("task: classification\ndata: {train: a}", "my-task.yaml: task: classification needs data.text"),
        (
            "data: {train: a}\nmethod: {lora_alpha: '16'}",
            "lora_alpha: expected float; found '16' (str); write 16",
        ),
        ("data: {train: a}\nmethod: {use_dora: 'true'}", "found 'true' (str); write true, without quotes"),
        ("training: {warmup: 3%}", "write a share, 0.03"),
        ("training: {learning_rate: '0,001'}", "write 0.001, without quotes"),
    ],
)
def test_what_is_easily_got_wrong_in_yaml_is_said_with_what_to_do(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert expected in refusal(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffbase: b\ndata: {train: a, prompt: '{{ x }}', completion: '{{ y }}'}\n",
        "base: b\r\ndata:\r\n  train: a\r\n  prompt: '{{ x }}'\r\n  completion: '{{ y }}'\r\n",
        "base: b\ndata: {train: a, prompt: '“{{ x }}”', completion: '{{ y }}'}\n",
        "base: b\ndata:\n  train: a\n  prompt: |\n    “{{ x }}”\n  completion: '{{ y }}'\n",
    ],
    ids=["a byte order mark", "Windows' line ends", "quotes that are meant", "quotes in a block"],
)
def test_what_editors_write_is_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_bytes(text.encode())
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert (recipe.base, recipe.data.sources) == ("b", ("a",))
    assert recipe.data.prompt.strip("“”\n") == "{{ x }}"


def test_every_key_says_what_it_is() -> None:
    def undescribed(section: type) -> list[str]:
        fields = section.model_fields  # type: ignore[attr-defined]
        missing = [name for name in fields if not description_of(section, name)]
        for f in fields.values():
            if hasattr(f.annotation, "model_fields"):
                missing += undescribed(f.annotation)
        return missing

    assert undescribed(Recipe) == []


def test_every_layout_that_a_recipe_can_name_is_built() -> None:
    assert set(LAYOUTS) == set(BUILDERS)


def test_an_outline_leaves_only_the_values_of_the_methods_options_unchecked() -> None:
    data = {"train": "rows.jsonl", "prompt": "{{ a }}", "completion": "{{ b }}"}
    content = {"data": data, "method": {"name": "lora", "r": "eight"}}
    assert outline_from(content).method.name == "lora"
    with pytest.raises(RecipeError, match=r"method: .*\br\b"):
        recipe_from(content)
    with pytest.raises(RecipeError, match=r"training\.epochs: expected a number"):
        outline_from({**content, "training": {"epochs": "many"}})
