"""An experiment's recipe: that of a training run, and what to compare and what not to forget.

`data`, `base`, `method`, `training` and `output` are `manytune train`'s. `compare` and `forgetting` are read by
`manytune compare` and `manytune sweep` alone, and each key of theirs has a default: a training recipe with test
rows is an experiment's recipe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator, model_validator

from manytune.data.nearest import did_you_mean
from manytune.data.section import Number, Section, kind_of, no_such_key
from manytune.errors import RecipeError
from manytune.evaluation.metrics import CLASS_METRICS, METRICS, NUMBER_METRICS, WORD_METRICS
from manytune.evaluation.metrics.recorded import RECORDED
from manytune.experiments.forgetting_recipe import ForgettingRecipe
from manytune.experiments.score_names import check_scores
from manytune.methods.registry import method_options, methods
from manytune.training.method_recipe import NAMES_ALONE, MethodRecipe
from manytune.training.recipe import Recipe, outline_from, read_mapping, recipe_from
from manytune.training.recipe_errors import list_mistakes

REFERENCE = "full"
"""The system whose gain counts as the whole gain, and the method that it trains if the recipe names none."""
BASE = "base"
"""What the untouched base is called."""
_SHOTS = re.compile(rf"{BASE}-(\d{{1,3}})")
"""A name such as `base-5`: the untouched base with five examples in its prompt."""

_AROUND = (0.3, 1.0, 3.0)


def default_learning_rates(method: str) -> tuple[float, ...]:
    """The rates that are tried if a recipe names none: the method's usual one, and a third and three times it."""
    centre = methods()[method].learning_rate
    return tuple(float(f"{centre * factor:.1g}") for factor in _AROUND)


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _as_rates(value: object) -> object:
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, int | float) else value


def _as_systems(value: object) -> object:
    """Names alone mean what they say: `base-5` that many examples, a method's name that method."""
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",")]
    if isinstance(value, list):
        odd = [name for name in value if not isinstance(name, str)]
        if odd:
            raise ValueError(f"a list names systems; found {kind_of(odd[0])}")
        value = {name: _system_called(name) for name in value if name != BASE}
    if not isinstance(value, Mapping):
        return value
    return {
        name: _with_shots(name, system) for name, system in value.items() if system or name != f"{BASE}-0"
    }


def _system_called(name: str) -> object:
    if _SHOTS.fullmatch(name):
        return {}
    if name not in method_options():
        known = [f"{BASE}-0", f"{BASE}-5", *method_options()]
        raise ValueError(
            f"a list names methods, and {BASE}-1, {BASE}-5 and so on, and a mapping systems with names of their own; "
            f"found {name!r}{did_you_mean(name, known)}"
        )
    return {"method": {"name": name}}


def _with_shots(name: object, system: object) -> object:
    found = _SHOTS.fullmatch(name) if isinstance(name, str) else None
    if found is None or not isinstance(system, Mapping | None) or {"shots", "method"} & {*(system or {})}:
        return system
    return {**(system or {}), "shots": int(found[1])}


class SystemRecipe(Section):
    """One system of a comparison: something that is trained, or the untouched base with examples in its prompt."""

    method: MethodRecipe | None = None
    """What is trained; null for the recipe's own method."""
    learning_rates: Annotated[
        Annotated[tuple[Number, ...], Field(min_length=1)] | None, BeforeValidator(_as_rates)
    ] = None
    """The peak learning rates to choose from by validation loss; one leaves no choice. Null for three around the
    method's usual one."""
    per_task: bool = False
    """Train one adapter for each of the recipe's tasks instead of one for all, in as many steps in all."""
    rehearse: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """This share of the examples comes from `forgetting.rehearsal` instead of the training rows."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Train on only this many of the training rows, as `data.limit` does; null for all."""
    shots: Annotated[int, Field(ge=1, le=100)] | None = None
    """Train nothing: ask the untouched base with this many training examples before each question. A system called
    `base-5` has five."""
    choose_shots: Literal["random", "similar"] = "random"
    """Which ones: the same for every question, by the first training seed; or those whose prompts have most words in
    common with the question's (TF-IDF), the most similar last."""

    @model_validator(mode="after")
    def _one_remedy(self) -> Self:
        if self.per_task and self.rehearse is not None:
            raise ValueError("give either per_task or rehearse")
        if self.rows is not None and (self.per_task or self.rehearse):
            raise ValueError(
                "rows are those of a single task without rehearsal; leave per_task and rehearse out"
            )
        trained = (self.method, self.learning_rates, self.per_task, self.rehearse, self.rows)
        if self.shots is not None and any(trained):
            raise ValueError(
                "shots train nothing; give them without method, learning_rates, per_task, rehearse, rows"
            )
        if self.shots is None and self.choose_shots != "random":
            raise ValueError("choose_shots chooses the examples of `shots`; give how many")
        return self


class CompareRecipe(Section):
    """What is compared, with which budget, and how it is scored."""

    systems: Annotated[
        Annotated[dict[str, SystemRecipe], Field(min_length=1)] | None, BeforeValidator(_as_systems)
    ] = None
    """The systems by name; or a list such as `[base-0, base-1, base-5, full, lora]`. The untouched base is always
    there, and the gain of `full` counts as the whole gain. Null for `full` and the recipe's own method, or for that
    method alone if the recipe packs the base's `weights`."""
    shots: Annotated[tuple[Annotated[int, Field(ge=1, le=100)], ...], BeforeValidator(_as_tuple)] = (1, 5)
    """Also ask the untouched base with each of these numbers of training examples in its prompt, wherever they fit
    into its context, unless `systems` names such systems; an empty list for none."""
    seeds: Annotated[
        Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)], BeforeValidator(_as_tuple)
    ] = (0,)
    """Every system is trained once with each; the learning rate is chosen with the first."""
    seconds: Annotated[Number, Field(gt=0)] | None = None
    """Give every training about this much time; null gives all as many steps as `training` says."""
    search_steps: Annotated[int, Field(ge=2)] | None = None
    """Steps of the trainings that only choose the learning rate; null for the whole budget, and then the one that is
    chosen isn't trained again."""
    metrics: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = (
        "rouge1",
        "rouge2",
        "rougeL",
        "bleu",
        "chrf",
    )
    """Scores on the test rows; the first one decides."""
    equivalence_margin: Annotated[Number, Field(gt=0, lt=1)] | None = 0.02
    """Also test whether each system scores within this share of `full`'s score; null tests no equivalence."""
    inference_cost: bool = True
    """Measure what answering costs with the engine: tokens per second, time to the first token, and memory of the base,
    and of each adapter merged, unmerged, and mixed with the others."""
    json_schema: str | None = None
    """A file with a JSON schema; also score the share of answers that are valid by it."""
    constrained: bool = False
    """Ask every system a second time, with its answers held to `json_schema`; results call it `LoRA, constrained`."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Ask only this many test prompts, the first ones; null for all."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    """The longest answer, in tokens."""
    batch_size: Annotated[int, Field(ge=1)] = 24
    """Prompts to a batch of answers; changes the time they take."""

    @field_validator("metrics")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError(f"expected one or more of {', '.join(METRICS)}")
        for name in names:
            if name == RECORDED:
                raise ValueError("answers that are made here have no recorded score; choose another metric")
            if name not in METRICS:
                raise ValueError(
                    f"expected metrics among {', '.join(METRICS)}; found {name!r}{did_you_mean(name, METRICS)}"
                )
        return names

    @model_validator(mode="after")
    def _schema_where_it_is_needed(self) -> Self:
        for needs, needed in (
            ("constrained", self.constrained),
            ("the metric json_schema", "json_schema" in self.metrics),
        ):
            if needed and self.json_schema is None:
                raise ValueError(f"{needs} needs a schema: give its file as compare.json_schema")
        return self

    @field_validator("systems")
    @classmethod
    def _not_the_base(cls, systems: dict[str, SystemRecipe] | None) -> dict[str, SystemRecipe] | None:
        if systems is not None and BASE in systems:
            raise ValueError(f"the name {BASE!r} is the untouched base's; call the system otherwise")
        return systems


class _Sections(Section):
    """The sections that a training recipe doesn't have."""

    compare: CompareRecipe = CompareRecipe()
    forgetting: ForgettingRecipe = ForgettingRecipe()


@dataclass(frozen=True)
class Experiment:
    """A checked recipe of an experiment.

    Attributes:
        recipe: The training recipe that all systems vary.
        compare: What is compared.
        forgetting: What may have been forgotten.
        content: The file's content with the overrides on top, as `experiment_from` takes it.
    """

    recipe: Recipe
    compare: CompareRecipe
    forgetting: ForgettingRecipe
    content: dict[str, Any]

    @property
    def directory(self) -> Path:
        """Where everything goes."""
        return Path(self.recipe.output)

    def systems(self) -> dict[str, SystemRecipe]:
        """The trained systems by name, in the order of the tables."""
        if self.compare.systems is not None:
            return {name: system for name, system in self.compare.systems.items() if system.shots is None}
        own = self.recipe.method
        full = MethodRecipe.model_construct(name=REFERENCE)
        reference = {REFERENCE: SystemRecipe.model_construct(method=full)}
        # What is packed takes no step of an optimizer.
        return (reference if self.recipe.weights is None else {}) | {
            own.name: SystemRecipe.model_construct(method=own)
        }

    def prompted(self) -> dict[str, SystemRecipe]:
        """The systems that are the untouched base with examples in its prompt, by name; without any, the usual ones."""
        named = self.compare.systems or {}
        found = {name: system for name, system in named.items() if system.shots is not None}
        return found or self._usual_prompted()

    @property
    def must_prompt(self) -> bool:
        """Whether the recipe itself names systems with examples in the prompt, so that they have to fit."""
        return any(system.shots is not None for system in (self.compare.systems or {}).values())

    def _usual_prompted(self) -> dict[str, SystemRecipe]:
        trained = self.compare.systems or {}
        usual = {f"{BASE}-{shots}": SystemRecipe(shots=shots) for shots in self.compare.shots}
        return {name: system for name, system in usual.items() if name not in trained}

    def method_of(self, system: SystemRecipe) -> MethodRecipe:
        """What a system trains."""
        return system.method or self.recipe.method

    def rates_of(self, system: SystemRecipe) -> tuple[float, ...]:
        """The learning rates that a system's is chosen from."""
        return system.learning_rates or default_learning_rates(self.method_of(system).name)


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment's recipe.

    Args:
        path: A YAML file.
        overrides: `section.key=value` texts, applied in order.

    Raises:
        RecipeError: The file can't be read, a key is unknown, a value can't be used, or there are no test rows.
    """
    return experiment_from(read_mapping(path, overrides), where=str(path))


def experiment_from(content: dict[str, Any], *, where: str = "recipe") -> Experiment:
    """Check an experiment's recipe that is already a mapping; see `recipe_from`.

    Raises:
        RecipeError: As for `load_experiment`.
    """
    outline_of(content, where=where)
    return _experiment(content, where, None)


def outline_of(content: dict[str, Any], *, where: str = "recipe") -> Experiment:
    """Check an experiment's recipe but for the values of methods' options; see `outline_from`.

    Raises:
        RecipeError: As for `load_experiment`.
    """
    return _experiment(content, where, NAMES_ALONE)


def _experiment(content: dict[str, Any], where: str, context: str | None) -> Experiment:
    own = {key: content[key] for key in _Sections.model_fields if key in content}
    try:
        sections = _Sections.model_validate(own, context=context)
    except ValidationError as error:
        raise RecipeError(list_mistakes(where, error, _explain)) from error
    checked = outline_from if context == NAMES_ALONE else recipe_from
    recipe = checked({key: value for key, value in content.items() if key not in own}, where=where)
    if recipe.adapter is not None:
        raise RecipeError(
            f"{where}: adapter: a comparison trains every system from new weights; only manytune train starts from an "
            "adapter. Leave it out."
        )
    check_scores(recipe)
    experiment = Experiment(recipe, sections.compare, sections.forgetting, content)
    if recipe.task != "generation":
        experiment = _of_classifiers(experiment, where)
    tasks = recipe.data.tasks
    if not any(rows.test is not None for rows in tasks or (recipe.data,)):
        raise RecipeError(
            f"{where}: data.test: a comparison needs test rows; give a file, or a share such as 0.2"
        )
    if experiment.systems() and not any(rows.validation is not None for rows in tasks or (recipe.data,)):
        raise RecipeError(
            f"{where}: data.validation: the learning rate is chosen on validation rows; give a file or a share"
        )
    for name, system in experiment.systems().items():
        method = experiment.method_of(system).name
        if recipe.weights is not None and not methods()[method].on_packed:
            raise RecipeError(
                f"{where}: compare.systems.{name}: {method} trains the base's weights, and weights: "
                f"{recipe.weights} packs them. Leave one of the two out."
            )
        if system.rows is not None and tasks:
            raise RecipeError(
                f"{where}: compare.systems.{name}.rows: data.train is a list of tasks; rows are limited for one task"
            )
        if system.per_task and len(tasks) < 2:
            raise RecipeError(
                f"{where}: compare.systems.{name}.per_task: data.train is one task; give a list of "
                "tasks, or leave it out"
            )
    return experiment


def _of_classifiers(experiment: Experiment, where: str) -> Experiment:
    """The experiment with classifiers' metrics, unless the recipe names some.

    Raises:
        RecipeError: It asks for what is about generated text.
    """
    compare, forgetting = experiment.compare, experiment.forgetting
    about_text = [name for name, system in (compare.systems or {}).items() if system.shots or system.rehearse]
    if about_text or forgetting.probes or forgetting.rehearsal:
        found = f"compare.systems.{about_text[0]}" if about_text else "forgetting"
        raise RecipeError(
            f"{where}: {found}: shots, rehearsal and probes are for models that generate; leave them out with task: "
            f"{experiment.recipe.task}"
        )
    usual = {"regression": NUMBER_METRICS, "token-classification": WORD_METRICS}.get(
        experiment.recipe.task, CLASS_METRICS
    )
    metrics = compare.metrics if "metrics" in compare.model_fields_set else usual
    return replace(experiment, compare=compare.model_copy(update={"metrics": metrics, "shots": ()}))


def _explain(problem: Any) -> str:
    """One of pydantic's findings in a recipe's words."""
    path = problem["loc"]
    name, kind = ".".join(map(str, path)), problem["type"]
    if kind == "extra_forbidden":
        return f"{name}: {no_such_key(str(path[-1]), _section_at(path[:-1]).model_fields)}"
    if kind == "missing":
        return f"{name}: this key is missing."
    if kind == "value_error":
        return f"{name}: {problem['ctx']['error']}"
    return f"{name}: {problem['msg']}; found {kind_of(problem['input'])}"


def _section_at(path: Sequence[str | int]) -> type[BaseModel]:
    """The section at a place; names of systems and numbers of probes lead into the section that they hold."""
    section: type[BaseModel] = _Sections
    for key in path:
        field = section.model_fields.get(str(key))
        if field is not None:
            section = _section_in(field.annotation) or section
    return section


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)
