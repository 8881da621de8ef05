"""A training run's directory: the one place that knows its files' names and the keys of `scores.json`.

recipe.yaml        the recipe, defaults and overrides included; `manytune train` runs it again
environment.json   releases, processor, threads, device
log.jsonl          one line a step, and one a validation (`run_log.py`)
adapter/           HF PEFT's files and manifest.json
scores.json        validation loss, cost, and which rows were left out; written last, so a run with it is complete
checkpoints/       what `--resume` continues from; removed when the run ends well
tensorboard/       event files, if the recipe asks for them
evaluation.json    the answers and scores of `manytune evaluate`
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manytune.atomic import atomic_write
from manytune.errors import RunError
from manytune.methods.config import CONFIG_NAME
from manytune.store.run_log import Report, read_reports

SCORES_NAME = "scores.json"
"""What messages call the file that holds every row that was left out."""
_ADAPTER = "adapter"


@dataclass(frozen=True, kw_only=True)
class RunScores:
    """The content of `scores.json`, key by key.

    What only people read may be missing in a file of another release; what programs read may not.

    Attributes:
        directory: The run directory.
        adapter: The adapter's directory.
        base: The base's name.
        method: The method's name.
        dtype: Of the base's weights and of products with them.
        activations: The dtype of hidden states on a bfloat16 base; "base" is that, too.
        tf32: Whether float32 products could be rounded to TF32 on a GPU.
        validation_loss: That of the step that is kept, in nats per target token; None without validation rows.
        kept: The step whose weights the adapter has, why it is this one, and its validation scores.
        steps: Optimizer steps.
        tokens: Input tokens read, pad tokens not counted.
        tokens_computed: Tokens that the model ran on, pad tokens included.
        saved_by_padding: Share of a padded run's tokens that weren't computed because they are pad tokens.
        saved_by_sharing: Share of the rest that weren't computed because their prefix was already.
        tokens_per_second: Training throughput.
        seconds: Time in all.
        compile_seconds: What `training.compile` took; None without it.
        peak_memory: The most memory in use at once, in bytes.
        trainable_parameters: Numbers that were trained.
        all_parameters: Numbers of the model with what was attached to it.
        experts: How many numbers of a mixture's experts were adapted, and all of them; None for a model without any.
        required_flops: Floating-point operations that the steps can't do without; None if they can't be counted.
        matmul_flops_per_second: The machine's FLOP/s in matrix products of the model's shapes; None if not measured.
        mfu: Model FLOPs utilisation: the required FLOPs over what the machine could have done in the steps' time.
        batching: The batch layout, and why not as asked if so.
        kernels: What the C++ kernels computed, or why there are none.
        cache_frozen: What `training.cache_frozen` kept; None without it.
        tokens_skipping_lower_layers: Tokens on which the lower layers didn't run.
        train_rows: Rows learned from.
        validation_rows: Rows that the loss was measured on.
        truncated: Prompts that were cut to the length limit.
        leaks: Prompts that occur in more than one split.
        left_out: Rows that couldn't be used, with the reasons.
        resumed_from: The step that `--resume` continued from; None if it didn't.
        tasks: How often each of several tasks came up; None for a single one.
    """

    directory: str
    adapter: str
    base: str
    method: str
    dtype: str | None = None
    activations: str | None = None
    tf32: bool | None = None
    validation_loss: float | None
    kept: Mapping[str, Any] | None = None
    steps: int
    tokens: int
    tokens_computed: int | None = None
    saved_by_padding: float | None = None
    saved_by_sharing: float | None = None
    tokens_per_second: float
    seconds: float
    compile_seconds: float | None = None
    peak_memory: int
    trainable_parameters: int
    all_parameters: int
    experts: Mapping[str, Any] | None = None
    required_flops: int | None = None
    matmul_flops_per_second: float | None = None
    mfu: float | None = None
    batching: Mapping[str, Any] | None = None
    kernels: str | None = None
    cache_frozen: Mapping[str, Any] | None = None
    tokens_skipping_lower_layers: int | None = None
    train_rows: int | None = None
    validation_rows: int | None = None
    truncated: int | None = None
    leaks: int | None = None
    left_out: tuple[Mapping[str, Any], ...] = ()
    resumed_from: int | None = None
    tasks: tuple[Mapping[str, Any], ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """What the file holds and `manytune train --json` prints."""
        fields = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}


@dataclass(frozen=True)
class RunDirectory:
    """A run directory, which needn't exist yet.

    Attributes:
        path: Where it is.
    """

    path: Path

    @staticmethod
    def of_adapter(adapter: Path) -> RunDirectory | None:
        """The run that an adapter's directory belongs to; None if it belongs to none."""
        run = RunDirectory(adapter.parent)
        return run if adapter.name == _ADAPTER and run.begun else None

    @property
    def recipe_file(self) -> Path:
        """The recipe, as it was run."""
        return self.path / "recipe.yaml"

    @property
    def environment_file(self) -> Path:
        """What the run ran with."""
        return self.path / "environment.json"

    @property
    def log_file(self) -> Path:
        """The course of the training."""
        return self.path / "log.jsonl"

    @property
    def adapter(self) -> Path:
        """The adapter's directory."""
        return self.path / _ADAPTER

    @property
    def scores_file(self) -> Path:
        """Validation loss and cost."""
        return self.path / SCORES_NAME

    @property
    def checkpoints(self) -> Path:
        """Where states of an unfinished run are."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """Where event files are."""
        return self.path / "tensorboard"

    @property
    def evaluation_file(self) -> Path:
        """Where `manytune evaluate` puts its result."""
        return self.path / "evaluation.json"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that a run writes next to its folders; the one that says that it is complete comes first."""
        return (
            self.scores_file,
            self.evaluation_file,
            self.log_file,
            self.environment_file,
            self.recipe_file,
        )

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that a run writes."""
        return (self.adapter, self.checkpoints, self.tensorboard)

    @property
    def begun(self) -> bool:
        """Whether there is a run, finished or not. Its recipe is written after its environment."""
        return self.recipe_file.is_file() and self.environment_file.is_file()

    @property
    def has_results(self) -> bool:
        """Whether there is anything of a run that took time: a step in its log, a checkpoint, an adapter, scores."""
        log = self.log_file
        there = (*self.folders, self.scores_file, self.evaluation_file)
        return any(path.exists() for path in there) or (log.is_file() and log.stat().st_size > 0)

    @property
    def finished(self) -> bool:
        """Whether there is a run that ended well."""
        return self.scores_file.is_file()

    def write_scores(self, scores: RunScores) -> None:
        """Write `scores.json`; the run is complete then."""
        content = json.dumps(scores.to_dict(), indent=2, ensure_ascii=False)
        atomic_write(self.scores_file, content + "\n")

    def read_scores(self) -> RunScores:
        """Read `scores.json`. Keys of another release that this one doesn't know are passed over.

        Raises:
            RunError: The run isn't complete, or the file isn't what a run writes.
        """
        names = {field.name for field in dataclasses.fields(RunScores)}
        try:
            content = json.loads(self.scores_file.read_text(encoding="utf-8"))
            return RunScores(**{key: value for key, value in content.items() if key in names})
        except FileNotFoundError:
            raise RunError(
                f"{self.path}: expected a complete run; it has no {self.scores_file.name}."
            ) from None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise RunError(
                f"{self.scores_file}: not the scores of a run ({error}). Train it again with --overwrite."
            ) from error

    def reports(self) -> tuple[Report, ...]:
        """Steps and validations in the order in which they came; none without a log."""
        return read_reports(self.log_file)


def adapter_at(path: Path) -> Path:
    """The adapter's directory that a path names: the one in a run, or the path itself."""
    inner = RunDirectory(path).adapter
    return inner if (inner / CONFIG_NAME).is_file() and not (path / CONFIG_NAME).is_file() else path


def display_name(path: Path) -> str:
    """What a run or an adapter is called: its directory's name, and a run's adapter by the run's."""
    return path.parent.name if path.name == _ADAPTER else path.name
