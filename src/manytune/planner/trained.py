"""What a method trains on an architecture: parameters, products that it adds, what it keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from manytune.data.nearest import did_you_mean
from manytune.data.section import Section, kind_of
from manytune.errors import RecipeError
from manytune.mixed.slot_rank import slot_rank
from manytune.planner.architecture import Architecture, Matrix

ALL_LINEAR = "all-linear"
OTHER = "other"


def _as_targets(value: object) -> object:
    if value is None or value == ALL_LINEAR:
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise ValueError(f"expected {ALL_LINEAR}, or a list of names of linear layers; found {kind_of(value)}")


Count = Annotated[int, Field(ge=1, le=1 << 40)]


class MethodPlan(Section):
    """The method, with the options that change sizes."""

    name: str = "lora"
    """`lora`, `ia3`, `vera`, `prompt-tuning`, `prefix-tuning`, `bottleneck` or `full`; `other` for any method whose
    `trained_parameters` are known."""
    r: Count | None = None
    """The rank of `lora` (8 by default) and `vera` (256)."""
    target_modules: Annotated[str | tuple[str, ...] | None, BeforeValidator(_as_targets)] = None
    """Of `lora` and `vera`: names of linear layers, or `all-linear`; null for the usual attention projections."""
    use_dora: bool = False
    """Whether `lora` is DoRA."""
    num_virtual_tokens: Count | None = None
    """Virtual tokens of `prompt-tuning` and `prefix-tuning`; 20 by default."""
    prefix_projection: bool = False
    """Whether the prefix comes from a network."""
    bottleneck_size: Count | None = None
    """Of `bottleneck`; 64 by default."""
    style: Literal["houlsby", "pfeiffer", "parallel"] | None = None
    """Of `bottleneck`; `houlsby` by default."""
    keep_base: bool = True
    """Whether `full` keeps the base's weights aside, as the recipe's key of this name."""
    trained_parameters: Count | None = None
    """Of `other`: how many numbers it trains."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.name not in OPTIONS:
            raise ValueError(
                f"name: planning knows the methods {', '.join(OPTIONS)}; found {self.name!r}"
                f"{did_you_mean(self.name, OPTIONS) or '.'} For another one, give name: {OTHER} and trained_parameters."
            )
        for option in sorted(self.model_fields_set - {"name", *OPTIONS[self.name]}):
            raise ValueError(
                f"{option}: {self.name} has no such option; it has {', '.join(OPTIONS[self.name]) or 'none'}."
            )
        if self.name == OTHER and self.trained_parameters is None:
            raise ValueError(f"trained_parameters: {OTHER} needs them.")
        return self


#: The options of each method that change sizes.
OPTIONS: dict[str, tuple[str, ...]] = {
    "lora": ("r", "target_modules", "use_dora"),
    "ia3": (),
    "vera": ("r", "target_modules"),
    "prompt-tuning": ("num_virtual_tokens",),
    "prefix-tuning": ("num_virtual_tokens", "prefix_projection"),
    "bottleneck": ("bottleneck_size", "style"),
    "full": ("keep_base",),
    OTHER: ("trained_parameters",),
}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a method trains.

    Attributes:
        label: The method in words.
        parameters: Numbers that train.
        kept: Numbers of an adapter's file.
        added_weights: Numbers in matrices that it adds, which each token is multiplied with.
        slot_numbers: Numbers of one adapter in the slots of a mixed batch.
        saved_inputs: What its backward pass needs of a block: `attention`, `heads`, `mlp`, `inner`, as `Matrix.reads`.
        saved_numbers: Further numbers that it keeps for a token and block.
        frozen_numbers: Numbers that it adds and doesn't train.
        input_tokens: Virtual tokens before each sequence.
        prefix_tokens: Keys and values before each sequence.
        whole: Whether the base's own weights train.
        copies_base: Whether the base's weights are kept aside.
    """

    label: str
    parameters: int
    kept: int
    added_weights: int = 0
    slot_numbers: int
    saved_inputs: frozenset[str] = frozenset()
    saved_numbers: int = 0
    frozen_numbers: int = 0
    input_tokens: int = 0
    prefix_tokens: int = 0
    whole: bool = False
    copies_base: bool = False


def trained_of(method: MethodPlan, model: Architecture) -> Trained:
    """What a method trains on a model.

    Raises:
        RecipeError: A target isn't there, or the method has no default for the family.
    """
    return _METHODS[method.name](method, model)


def _targets(method: MethodPlan, model: Architecture) -> tuple[Matrix, ...]:
    asked = method.target_modules
    if asked == ALL_LINEAR:
        return model.matrices
    names: Sequence[str] = model.family.query_targets if asked is None or isinstance(asked, str) else asked
    return model.named(names)


def _lora(method: MethodPlan, model: Architecture) -> Trained:
    rank, targets = method.r or 8, _targets(method, model)
    sizes = sum(matrix.inputs + matrix.outputs for matrix in targets)
    magnitudes = sum(matrix.outputs for matrix in targets) if method.use_dora else 0
    pairs = model.layers * rank * sizes
    parameters = pairs + model.layers * magnitudes
    where = "all linear layers" if targets == model.matrices else ", ".join(m.name for m in targets)
    return Trained(
        label=f"{'DoRA' if method.use_dora else 'LoRA'} r = {rank} on {where}",
        parameters=parameters,
        kept=parameters,
        added_weights=pairs,
        slot_numbers=model.layers * (slot_rank(rank) * sizes + magnitudes),
        saved_inputs=frozenset(matrix.reads for matrix in targets),
        saved_numbers=rank * len(targets) + 2 * magnitudes,
    )


def _vera(method: MethodPlan, model: Architecture) -> Trained:
    rank, targets = method.r or 256, _targets(method, model)
    parameters = model.layers * sum(rank + matrix.outputs for matrix in targets)
    shared = rank * (max(m.inputs for m in targets) + max(m.outputs for m in targets))
    pairs = model.layers * rank * sum(matrix.inputs + matrix.outputs for matrix in targets)
    return Trained(
        label=f"VeRA r = {rank} on {', '.join(m.name for m in targets)}",
        parameters=parameters,
        kept=parameters + shared,
        added_weights=pairs,
        slot_numbers=pairs,
        saved_numbers=sum(rank + matrix.outputs for matrix in targets),
        frozen_numbers=shared,
    )


def _ia3(method: MethodPlan, model: Architecture) -> Trained:
    if model.family.ia3_targets is None:
        raise RecipeError(
            f"method: IA3 has no usual modules for {model.model_type}. Plan with name: {OTHER} and trained_parameters."
        )
    scaled, ways_out = (model.named(names) for names in model.family.ia3_targets)
    numbers = sum(m.outputs for m in scaled) + sum(m.inputs for m in ways_out)
    parameters = model.layers * numbers
    return Trained(
        label="IA3",
        parameters=parameters,
        kept=parameters,
        slot_numbers=parameters,
        saved_numbers=numbers,
    )


def _prompt(method: MethodPlan, model: Architecture) -> Trained:
    tokens = method.num_virtual_tokens or 20
    parameters = tokens * model.hidden
    return Trained(
        label=f"prompt tuning, {tokens} tokens",
        parameters=parameters,
        kept=parameters,
        slot_numbers=parameters,
        input_tokens=tokens,
    )


def _prefix(method: MethodPlan, model: Architecture) -> Trained:
    tokens = method.num_virtual_tokens or 20
    kept = tokens * model.kv_numbers
    parameters, size = kept, model.key_heads * model.head_dim
    if method.prefix_projection:
        parameters = tokens * size + size * size + size + (size + 1) * model.kv_numbers
    return Trained(
        label=f"prefix tuning, {tokens} tokens",
        parameters=parameters,
        kept=kept,
        slot_numbers=kept,
        prefix_tokens=tokens,
    )


def _bottleneck(method: MethodPlan, model: Architecture) -> Trained:
    size, style = method.bottleneck_size or 64, method.style or "houlsby"
    sites = model.layers * (2 if style == "houlsby" else 1)
    weights = 2 * size * model.hidden
    parameters = sites * (weights + size + model.hidden)
    slot = slot_rank(size)
    per_layer = sites // model.layers
    return Trained(
        label=f"bottleneck ({style}), {size} wide",
        parameters=parameters,
        kept=parameters,
        added_weights=sites * weights,
        slot_numbers=sites * (2 * slot * model.hidden + slot + model.hidden),
        saved_numbers=per_layer * (model.hidden + 2 * size),
    )


def _full(method: MethodPlan, model: Architecture) -> Trained:
    return Trained(
        label="full fine-tuning",
        parameters=model.parameters,
        kept=model.parameters,
        slot_numbers=model.parameters,
        saved_inputs=frozenset({"attention", "heads", "mlp", "inner"}),
        whole=True,
        copies_base=method.keep_base,
    )


def _other(method: MethodPlan, model: Architecture) -> Trained:
    parameters = method.trained_parameters or 0
    return Trained(
        label=f"a method with {parameters:,} trained parameters",
        parameters=parameters,
        kept=parameters,
        added_weights=parameters,
        slot_numbers=parameters,
        saved_inputs=frozenset({"attention", "heads", "mlp", "inner"}),
    )


_METHODS: dict[str, Callable[[MethodPlan, Architecture], Trained]] = {
    "lora": _lora,
    "ia3": _ia3,
    "vera": _vera,
    "prompt-tuning": _prompt,
    "prefix-tuning": _prefix,
    "bottleneck": _bottleneck,
    "full": _full,
    OTHER: _other,
}
