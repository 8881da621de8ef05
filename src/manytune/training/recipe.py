"""The recipe: everything that decides a training run, in one checked file.

A recipe is YAML with the sections below; each key has a default except `data.train`. `load_recipe` reads
one, puts `--set a.b=c` overrides on top, and reports every mistake with the file, the key's path and what
was expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from manytune.data.labels.numeric_labels import Scale
from manytune.data.nearest import did_you_mean
from manytune.data.readers import holds_rows
from manytune.data.recipe import DataRecipe
from manytune.data.recipe_values import as_fields, json_values, names_or_null
from manytune.data.section import Number, Section, kind_of
from manytune.errors import RecipeError
from manytune.store.quantization import Packing
from manytune.training.choices import (
    LAYOUTS,
    check_optimizer_options,
    check_schedule,
    epoch_or_steps,
    one_of,
)
from manytune.training.method_recipe import NAMES_ALONE, MethodRecipe
from manytune.training.optimizers import OPTIMIZERS
from manytune.training.recipe_errors import explain, keys_of, list_mistakes, unreadable
from manytune.training.recipe_yaml import apply_override, line_of, parse_yaml, problem_of
from manytune.training.schedules import SCHEDULES

_LARGEST = 1 << 20
"""Bytes of a recipe's file."""

LOSS = "validation_loss"
"""What the validation loss is called among the metrics that decide which step is best."""

REPORTERS = ("tensorboard", "wandb", "mlflow", "trackio")
"""What transformers reports to, as `report_to` names it; each is the name of its package, too."""


def _as_class_weights(value: object) -> object:
    """Labels are texts: YAML reads `{0: 1, 1: 3}` and `{yes: 2}` otherwise."""
    if not isinstance(value, dict):
        return value
    odd = [key for key in value if not isinstance(key, str | int) or isinstance(key, bool)]
    if odd:
        raise ValueError(
            f"expected labels as texts; YAML reads {odd[0]!r} otherwise, so put the label in quotes"
        )
    return {str(key): weight for key, weight in value.items()}


class ValidationRecipe(Section):
    """Scores of generated answers while it trains."""

    scores: Annotated[tuple[str, ...], BeforeValidator(names_or_null), Field(min_length=1)]
    """Which scores of answers to validation prompts to measure, such as `[rouge1, exact_match]`."""
    every: Annotated[Literal["epoch"] | int, BeforeValidator(epoch_or_steps)] = "epoch"
    """When: once an `epoch`, or a number of steps; before the first and after the last step in any case."""
    rows: Annotated[int, Field(ge=1)] = 64
    """On how many validation prompts at most, taken at equal distances; test rows have no part in it."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    """The longest answer, in tokens."""
    batch_size: Annotated[int, Field(ge=1)] = 24
    """Prompts to a batch of answers; changes the time they take."""


class EarlyStoppingRecipe(Section):
    """When a training ends before its last step."""

    patience: Annotated[int, Field(ge=1)]
    """Stop after this many validations in a row without a better `best_metric`."""
    min_delta: Annotated[Number, Field(ge=0)] = 0.0
    """By how much it must be better to count."""


class TrainingRecipe(Section):
    """How it is trained."""

    epochs: Annotated[Number, Field(gt=0, le=1e6)] = 3.0
    """Passes over the training rows; a fraction is allowed."""
    max_steps: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Stop after this many optimizer steps, whatever `epochs` says."""
    batch_size: Annotated[int, Field(ge=1, le=1 << 40)] = 8
    """Rows in one forward pass."""
    token_budget: Annotated[int, Field(ge=1, le=1 << 40)] | None = None
    """Instead of `batch_size`: a batch takes rows until the next would have the model compute more tokens than this.
    Validation goes by `batch_size`."""
    accumulation: Annotated[int, Field(ge=1, le=1 << 40)] = 1
    """Forward passes in one optimizer step; the loss is the mean over all their target tokens."""
    learning_rate: Annotated[Number, Field(gt=0)] = 2e-4
    """The peak learning rate."""
    optimizer: str = "adamw"
    """An optimizer of transformers by its name: `adamw`, `adafactor`, `sgd`, `adagrad`, `rmsprop`, and of bitsandbytes
    `adamw_8bit`, `lion`, `lion_8bit`, `ademamix`, `ademamix_8bit` and their paged forms."""
    optimizer_options: Annotated[dict[str, Any], BeforeValidator(json_values)] = Field(default_factory=dict)
    """Its own options, such as `{betas: [0.9, 0.95]}` or `{momentum: 0.9}`."""
    loraplus_lr_ratio: Annotated[Number, Field(gt=0)] | None = None
    """LoRA+ (arXiv 2402.12354): B learns with this many times `learning_rate`, which is A's; null for the same."""
    lora_fa: bool = False
    """LoRA-FA (arXiv 2308.03303): A stays as it was drawn, and B's gradient is multiplied by (A Aᵀ)⁻¹ / s², as HF
    PEFT's optimizer of this name does."""
    lr_scheduler: str = "linear"
    """A schedule of transformers by its name: how the learning rate falls after the warm-up. `constant` keeps it, and
    `reduce_lr_on_plateau` follows the validation loss."""
    lr_scheduler_options: Annotated[dict[str, Any], BeforeValidator(json_values)] = Field(
        default_factory=dict
    )
    """Its own options, such as `{min_lr_rate: 0.1}`; `num_decay_steps` below 1 is a share of the steps."""
    warmup: Annotated[Number, Field(ge=0, lt=1)] = 0.03
    """The share of the steps over which the learning rate rises from zero."""
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    """The optimizer's weight decay; not applied to biases, norms and other vectors, nor to factors whose neutral value
    isn't 0, such as IA³'s."""
    max_grad_norm: Annotated[Number, Field(ge=0)] = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""
    batching: str = "shared-prefix"
    """How rows are laid out for the model: `shared-prefix`, `padding-free` or `padded`, all with the same loss and
    gradients. A model that a layout doesn't suit trains with `padded`, and the run says so."""
    group_prefixes: bool = False
    """Put rows with a common prefix, such as several questions on one document, into the same batch; with
    `shared-prefix` batches the prefix is computed once."""
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    """Decides the adapter's initial weights, the order of the rows and dropout; not the splits."""
    eval_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between validation losses; null for once an epoch. The last step always has one."""
    validation: ValidationRecipe | None = None
    """Scores of generated answers next to the validation loss; null for none."""
    keep: Literal["last", "best"] = "last"
    """The step whose weights become the adapter: the `last`, or the `best` of those with a validation."""
    best_metric: str = LOSS
    """What is best: the lowest `validation_loss`, or one of `validation.scores`; also decides early stopping."""
    early_stopping: EarlyStoppingRecipe | None = None
    """End the training when it gets no better; null for never."""
    checkpoint_every: Annotated[int, Field(ge=1)] | None = 100
    """Steps between the states that `--resume` continues from; null for none."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The type of the base's weights and of products with them: `auto` is bfloat16 on a GPU that computes it natively,
    and float32 elsewhere. The run keeps what it was. Weights that train are float32 in any case."""
    activations: Literal["float32", "base"] = "float32"
    """The type of hidden states on a bfloat16 base, and of what adapters add to them: `base` is bfloat16 too, as HF
    PEFT has it, which rounds small updates away."""
    tf32: bool = False
    """Let a GPU round the factors of float32 products to TF32, which has 10 bits: several times as fast, less exact."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto is the GPU if there is one."""
    sharding: Literal["none", "full"] = "none"
    """On several processes: `full` lets each hold a part of every weight, gradient and optimizer state (FSDP2), for
    bases that one GPU can't hold; `none` lets each hold the whole base (DDP). Both have the result of one process."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Run the model's layers through `torch.compile`: a minute at the start for somewhat faster steps. Needs a C++
    compiler on CPU."""
    cache_frozen: bool = False
    """Run the layers below everything that is trained once, and keep in memory what they give, instead of in every
    epoch; for methods on upper layers alone."""
    class_weights: Annotated[
        Literal["balanced"]
        | Annotated[dict[str, Annotated[Number, Field(gt=0)]], Field(min_length=2)]
        | None,
        BeforeValidator(_as_class_weights),
    ] = None
    """For `task: classification` and `token-classification`: what rows, or words, of each label weigh in the loss, such
    as `{spam: 3, ham: 1}`, scaled to a mean of 1; `balanced` for an equal part of the loss for each label; null for an
    equal weight for each."""
    standardize: bool | Annotated[dict[Literal["mean", "deviation"], Number], Field(min_length=2)] | None = (
        None
    )
    """For `task: regression`: learn the labels with mean 0 and standard deviation 1 over the training rows, as null
    does; `false` learns them as they are, and `{mean: 3, deviation: 1.5}` on this scale. Answers have
    the labels' unit."""
    report_to: Annotated[tuple[str, ...], BeforeValidator(as_fields)] = ()
    """Report losses and scores to `tensorboard`, `wandb`, `mlflow` or `trackio` too: transformers' integrations, which
    their own environment variables configure."""
    tensorboard: bool = False
    """Short for `report_to: [tensorboard]`: event files in the run directory."""

    @field_validator("batching")
    @classmethod
    def _known_layout(cls, name: str) -> str:
        return one_of(name, LAYOUTS)

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        return one_of(name, OPTIMIZERS)

    @property
    def scale(self) -> Scale | bool:
        """What a regression's head learns; see `numeric_labels_of`."""
        wanted = self.standardize
        return Scale(**wanted) if isinstance(wanted, dict) else wanted is not False

    @field_validator("report_to")
    @classmethod
    def _known_reporters(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(one_of(name, REPORTERS) for name in names)

    @field_validator("lr_scheduler")
    @classmethod
    def _known_schedule(cls, name: str) -> str:
        return one_of(name, SCHEDULES)

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if isinstance(self.standardize, dict) and not self.standardize["deviation"] > 0:
            raise ValueError("standardize: the deviation must be above 0")
        check_optimizer_options(self.optimizer, self.optimizer_options)
        self._check_best_metric()
        check_schedule(self.lr_scheduler, self.lr_scheduler_options, warmup=self.warmup)
        if self.lora_fa and self.loraplus_lr_ratio is not None:
            raise ValueError("loraplus_lr_ratio sets B's rate relative to A's, and lora_fa doesn't train A")
        return self

    def _check_best_metric(self) -> None:
        known = (LOSS, *(self.validation.scores if self.validation else ()))
        if self.best_metric not in known:
            raise ValueError(
                f"best_metric: expected {LOSS} or one of validation.scores ({', '.join(known[1:]) or 'none'}); "
                f"found {self.best_metric!r}{did_you_mean(self.best_metric, known)}"
            )
        if self.best_metric != LOSS and self.keep == "last" and self.early_stopping is None:
            raise ValueError("best_metric has no effect without keep: best or early_stopping")


_NOT_CLASSIFIED = ("token_budget", "group_prefixes", "cache_frozen", "compile")


class Recipe(Section):
    """A training run. Paths in it are relative to the directory that the command runs in."""

    base: str = "embedded"
    """A hub id, a directory, a .gguf file, or `embedded` (SmolLM2-135M-Instruct, needs no hub)."""
    weights: Packing | None = None
    """Pack the frozen base's linear layers: `nf4` (4 bits, by bitsandbytes) or `int8` (by torchao), for which
    the extra `quant` is installed; null keeps them as they are, which may be packed."""
    task: Literal["generation", "classification", "regression", "token-classification"] = "generation"
    """What is learned: `generation` of a completion after a prompt; by a new head, `classification` of a text
    (`data.text`) or an image (`data.image`) with the labels of the rows (`data.label`), `regression`, whose labels are
    numbers, or `token-classification` of words (`data.tokens`) with a tag each (`data.tags`)."""
    data: DataRecipe
    """Which rows, and how a row becomes a prompt and a completion."""
    method: MethodRecipe = MethodRecipe.model_construct()
    """What is trained."""
    adapter: str | None = None
    """Start from this adapter instead of new weights: a run's or an adapter's directory, or a name in the store
    (`MANYTUNE_STORE`, or `adapters`). Its method and options are those of the training; null for new weights."""
    training: TrainingRecipe = TrainingRecipe()
    """How it is trained."""
    output: str = "runs/run"
    """The run directory; `load_recipe` makes it `runs/<name of the recipe file>` when the file doesn't
    say."""

    @model_validator(mode="after")
    def _rows_of_the_task(self) -> Self:
        if self.task == "generation":
            if self.data.is_labelled:
                keys, task = (
                    ("tokens and data.tags", "token-classification")
                    if self.data.is_tagged
                    else (
                        f"{'text' if self.data.image is None else 'image'} and data.label",
                        "classification",
                    )
                )
                raise ValueError(f"data.{keys} are for task: {task}; add that line")
        elif self.task == "token-classification" and not self.data.is_tagged:
            raise ValueError("task: token-classification needs data.tokens and data.tags, fields' names")
        elif self.task != "token-classification" and (self.data.is_tagged or not self.data.is_labelled):
            raise ValueError(
                f"task: {self.task} needs data.text, a template, or data.image, a field's name; and data.label"
            )
        if self.task in ("generation", "regression") and self.training.class_weights is not None:
            raise ValueError("training.class_weights are for task: classification and token-classification")
        if self.task != "regression" and self.training.standardize is not None:
            raise ValueError("training.standardize is for task: regression, whose labels are numbers")
        if self.task == "generation":
            return self
        if self.adapter is not None:
            raise ValueError(
                f"task: {self.task} starts with a new head, so adapter isn't for it; leave it out"
            )
        if self.training.validation is not None and self.training.validation.scores:
            raise ValueError(
                f"training.validation.scores are of generated answers; for task: {self.task} leave them out, and the "
                "validation loss decides"
            )
        taken = [key for key in _NOT_CLASSIFIED if getattr(self.training, key)]
        if taken:
            raise ValueError(f"training.{taken[0]} isn't for task: {self.task}; leave it out")
        if self.task == "regression":
            object.__setattr__(self, "data", self.data.of_numbers())
        return self

    def to_yaml(self) -> str:
        """The whole recipe, defaults included, as `load_recipe` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: A YAML file.
        overrides: `section.key=value` texts, applied in order; the value is YAML.

    Raises:
        RecipeError: The file can't be read, a key is unknown (the nearest known key is named), or a value
            can't be used. All mistakes of a file are reported together.
    """
    file = Path(path)
    return recipe_from(read_mapping(file, overrides), where=str(file))


def read_mapping(file: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe's file, with the overrides put on top and `output` filled in.

    Raises:
        RecipeError: The file can't be read, isn't YAML, or holds something else than a mapping.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise RecipeError(
                f"{file}: expected a recipe of at most {_LARGEST:,} bytes; this file is larger."
            )
        text = content.decode("utf-8")
        parsed = parse_yaml(text)
    except UnicodeDecodeError:
        raise RecipeError(
            f"{file}: a recipe is text in UTF-8, and this file isn't. Save it as UTF-8."
        ) from None
    except OSError as error:
        raise RecipeError(unreadable(file, error)) from error
    except yaml.YAMLError as error:
        raise RecipeError(
            f"{file}{line_of(error)}: this isn't valid YAML: {problem_of(error, text)}"
        ) from error
    if not isinstance(parsed, dict):
        rows = f" `manytune init {file}` writes one for rows." if holds_rows(file) else ""
        raise RecipeError(
            f"{file}: a recipe is a mapping with the keys {keys_of(Recipe)}; found {kind_of(parsed)}.{rows}"
        )
    for override in overrides:
        apply_override(parsed, override)
    parsed.setdefault("output", f"runs/{file.stem}")
    return parsed


def recipe_from(content: dict[str, Any], *, where: str = "recipe") -> Recipe:
    """Check a recipe that is already a mapping.

    Its names are checked first, as `outline_from` does: importing the methods, which check their options' values, takes
    seconds.

    Args:
        content: The recipe as YAML would give it.
        where: What messages call it.

    Raises:
        RecipeError: As for `load_recipe`.
    """
    outline_from(content, where=where)
    return _validated(content, where, None)


def outline_from(content: dict[str, Any], *, where: str = "recipe") -> Recipe:
    """Check a recipe but for the values of its method's options. No model library is imported for it.

    Args:
        content: The recipe as YAML would give it.
        where: What messages call it.

    Raises:
        RecipeError: As for `load_recipe`.
    """
    return _validated(content, where, NAMES_ALONE)


def _validated(content: dict[str, Any], where: str, context: str | None) -> Recipe:
    try:
        return Recipe.model_validate(content, context=context)
    except ValidationError as error:
        raise RecipeError(list_mistakes(where, error, partial(explain, Recipe))) from error
