"""A plan's file: a model, a method, a device, and what is to be trained and served."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, ValidationError, create_model, model_validator

from manytune.data.nearest import did_you_mean
from manytune.data.section import Number, Section, kind_of
from manytune.errors import RecipeError, reason_of
from manytune.methods.tuners.sizes import Count, MethodSizes
from manytune.planner.dtypes import PACKED, Kept
from manytune.planner.trained import sizes_named
from manytune.training.recipe_errors import explain, keys_of, list_mistakes
from manytune.training.recipe_yaml import apply_override, line_of, parse_yaml, problem_of

_LARGEST = 1 << 20

Positive = Annotated[Number, Field(gt=0, le=1e15)]


def _named_or_described(value: object) -> object:
    if isinstance(value, str) or (isinstance(value, dict) and all(isinstance(key, str) for key in value)):
        return value
    raise ValueError(f"expected a name or a section; found {kind_of(value)}")


NamedOrDescribed = Annotated[str | dict[str, Any], BeforeValidator(_named_or_described)]


class TrainingPlanSection(Section):
    """The training that is planned."""

    rows: Count = 1000
    """Rows to learn from."""
    epochs: Positive = 3.0
    """Passes over them."""
    batch_size: Count = 8
    """Rows in one forward pass of a device."""
    accumulation: Count = 1
    """Forward passes in one optimizer step."""
    tokens: Positive = 512.0
    """Tokens of a row that are computed, on average: without those that rows share, with pad tokens if any."""
    longest_tokens: Positive | None = None
    """Tokens of a row in the batch that decides the memory; null for `tokens`."""
    target_tokens: Positive | None = None
    """Of these, tokens that are learned; null for all."""
    weights: Kept = "bfloat16"
    """How the base's weights are kept: `float32`, `bfloat16`, `int8` or `nf4` (4 bits)."""
    activations: Literal["float32", "base"] = "float32"
    """The type of hidden states, as the recipe's key of this name: `base` is bfloat16 unless weights are float32."""
    trained: Literal["float32", "bfloat16"] = "float32"
    """The type of what trains and of its gradients; manytune always takes float32."""
    optimizer: Literal["adamw", "adamw_8bit", "adafactor", "sgd"] = "adamw"
    """The optimizer, whose states take 8, 2, about 0 and 0 bytes for a trained number."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    logits: Literal["chunked", "whole"] = "chunked"
    """Whether logits are made a chunk at a time, as manytune does, or of all targets at once."""
    devices: Count = 1
    """Devices that share the batches of a step."""
    sharded: bool = False
    """Whether they share the weights too, as FSDP does."""
    mfu: Annotated[Number, Field(gt=0, le=1)] | None = None
    """The share of the device's FLOP/s that steps reach, if it is known; null for a usual one."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.weights == "float8":
            raise ValueError("weights: a base in float8 can be served, not trained on; take int8 or nf4.")
        if self.target_tokens is not None and self.target_tokens > self.tokens:
            raise ValueError(
                f"target_tokens: there are more of them ({self.target_tokens:g}) than tokens ({self.tokens:g})."
            )
        if self.longest_tokens is not None and self.longest_tokens < self.tokens:
            raise ValueError(
                f"longest_tokens: {self.longest_tokens:g} is less than the mean ({self.tokens:g})."
            )
        return self


class ServingPlanSection(Section):
    """The service that is planned."""

    requests_per_second: Positive = 1.0
    """Requests that arrive, on average."""
    prompt_tokens: Positive = 512.0
    """Tokens of a prompt, on average, that aren't in a cache of prefixes."""
    answer_tokens: Positive = 128.0
    """Tokens of an answer, on average."""
    adapters: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    """Adapters of the method above; 0 for the base alone."""
    zipf: Annotated[Number, Field(ge=0, le=4)] = 1.0
    """How unequal their popularity is: the n-th gets 1/n^zipf of the requests of the first; 0 for all alike."""
    weights: Kept = "bfloat16"
    """How the base's weights are kept: `float32`, `bfloat16`, `float8`, `int8` or `nf4`."""
    kv: Literal["float32", "bfloat16", "float8"] = "bfloat16"
    """The type of keys and values."""
    adapter_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """The type of adapters in use."""
    reordered: bool = True
    """Whether a server on a CPU keeps a second copy of the linear layers, as manytune's does by default."""
    devices: Count | None = None
    """Devices of one replica, which share its weights; null for what needs the fewest in all: 1, 2, 4 or 8."""
    memory_share: Annotated[Number, Field(gt=0, le=1)] = 0.9
    """The share of a device's memory that the server may take."""
    max_batch: Count = 256
    """The most requests that run at once on a replica."""
    host_memory_gib: Positive | None = None
    """Memory for adapters that aren't in use, on each replica's machine; null for as much as they need."""
    load: Annotated[Number, Field(gt=0, le=1)] = 0.7
    """The share of its throughput that a replica is used at, so that bursts wait little."""


class PlanRecipe(Section):
    """What is planned."""

    model: NamedOrDescribed
    """A config.json, the directory that holds one, a hub id in the hub's cache, or the keys of a config."""
    method: MethodSizes
    """The method's name, `lora` by default, and its options that change sizes."""
    hardware: NamedOrDescribed = "h100-sxm"
    """A name of the table of devices, `this-machine`, or memory, bandwidth and FLOP/s of another one."""
    training: TrainingPlanSection | None = None
    """What is to be trained; null for no training."""
    serving: ServingPlanSection | None = None
    """What is to be served; null for no service."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        training = self.training
        if training is None:
            return self
        if not self.method.on_packed and training.weights in PACKED:
            raise ValueError(
                f"training.weights: {self.method.name} can't train weights in {training.weights}; take bfloat16 or "
                "float32."
            )
        if self.method.no_checkpointing is not None and training.gradient_checkpointing:
            raise ValueError(f"training.gradient_checkpointing: {self.method.no_checkpointing}")
        return self


def load_plan(path: Path, overrides: Sequence[str] = ()) -> PlanRecipe:
    """Read a plan's file.

    Raises:
        RecipeError: It can't be read, or a key or a value is wrong; all mistakes are reported together.
    """
    content = read_bounded_yaml(path, PlanRecipe)
    return plan_from(content, overrides, where=str(path))


def plan_from(content: dict[str, Any], overrides: Sequence[str] = (), *, where: str = "plan") -> PlanRecipe:
    """Check a plan that is a mapping already.

    Args:
        content: The mapping; the overrides are put into it.
        overrides: `section.key=value` texts.
        where: What it is called in messages.

    Raises:
        RecipeError: A key or a value is wrong.
    """
    for override in overrides:
        apply_override(content, override)
    if "data" in content and "model" not in content:
        raise RecipeError(
            f"{where}: this is a training's recipe, and a plan has the keys {keys_of(PlanRecipe)}. Plan its base: "
            f"manytune plan {content.get('base', 'BASE')} --set training.rows=1000."
        )
    method = content.get("method", {})
    if isinstance(method, dict):
        method = {"name": "lora", **method}
    recipe = _recipe_with(sizes_named(method["name"] if isinstance(method, dict) else "lora", where=where))
    try:
        return recipe(**{**content, "method": method})
    except ValidationError as error:
        raise RecipeError(list_mistakes(where, error, lambda problem: explain(recipe, problem))) from error
    except TypeError:
        raise RecipeError(f"{where}: keys are text.") from None


@cache
def _recipe_with(method: type[MethodSizes]) -> type[PlanRecipe]:
    """Plans whose `method` has the options of one method."""
    return create_model("PlanRecipe", __base__=PlanRecipe, method=(method, ...))


def read_bounded_yaml(path: Path, section: type[Section] | None = None) -> dict[str, Any]:
    """The mapping in a YAML or JSON file of at most a mebibyte.

    Raises:
        RecipeError: It can't be read, is larger, or holds something else.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise RecipeError(f"{path}: expected a file of at most {_LARGEST:,} bytes; this one is larger.")
        content = parse_yaml(text.decode("utf-8"))
    except FileNotFoundError:
        others = path.parent.iterdir() if path.parent.is_dir() else ()
        nearest = did_you_mean(str(path), (str(one) for one in others if one.suffix == path.suffix))
        raise RecipeError(f"{path}: there is no such file{nearest or '; name one that is there.'}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: the file can't be read: {reason_of(error)}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}{line_of(error)}: this isn't valid YAML: {problem_of(error)}") from error
    if not isinstance(content, dict):
        expected = "a model's config" if section is None else f"the keys {keys_of(section)}"
        raise RecipeError(f"{path}: expected a mapping with {expected}; found {kind_of(content)}.")
    return content
