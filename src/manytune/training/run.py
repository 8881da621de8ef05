"""A training run: from a recipe to a directory that holds everything about it.

recipe.yaml        the recipe, defaults and overrides included; `manytune train` runs it again
environment.json   releases, processor, threads, device
log.jsonl          one line a step, and one a validation
adapter/           HF PEFT's files and manifest.json
scores.json        validation loss, cost, and which rows were left out
checkpoints/       what `--resume` continues from; removed when the run ends well
tensorboard/       event files, if the recipe asks for them
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from manytune import __version__
from manytune.atomic import atomic_write, clean_leftovers
from manytune.data.dataset import TokenSplits, content_hash, encode_splits, read_splits
from manytune.data.mixing import Mixture
from manytune.data.records import Rejected
from manytune.errors import RunError
from manytune.model.attach import get_peft_model
from manytune.store.adapters import save_adapter
from manytune.store.base import Base, load_base
from manytune.store.locking import held
from manytune.store.manifest import Description
from manytune.store.servability import note_verdict
from manytune.training.loop.train import TrainingResult, train_model
from manytune.training.progress import Report
from manytune.training.recipe import Recipe, load_recipe
from manytune.training.resume import Checkpoint, latest_checkpoint
from manytune.training.run_log import LOG_NAME, RunLog
from manytune.training.training_plan import total_steps

RECIPE_NAME = "recipe.yaml"
_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "safetensors", "tokenizers", "numpy")


@dataclass(frozen=True)
class TrainedRun:
    """A run that ended well.

    Attributes:
        directory: The run directory.
        adapter: The adapter's directory in it.
        base: The base's name.
        method: The method's name.
        train_rows: Rows learned from.
        validation_rows: Rows that the loss was measured on.
        left_out: Rows that couldn't be used, with the reasons.
        truncated: Prompts that were cut to the length limit.
        leaks: Prompts that occur in more than one split.
        resumed_from: The step that `--resume` continued from; None if it didn't.
        mixture: How often each task came up; None for a single task.
        training: Cost and course of the training.
    """

    directory: Path
    adapter: Path
    base: str
    method: str
    train_rows: int
    validation_rows: int
    left_out: tuple[Rejected, ...]
    truncated: int
    leaks: int
    resumed_from: int | None
    mixture: Mixture | None
    training: TrainingResult

    def to_dict(self) -> dict[str, Any]:
        """What `scores.json` holds and `manytune train --json` prints; the course is in `log.jsonl`."""
        training, mixture = self.training, self.mixture
        counts = training.tally.counts
        return {
            "directory": str(self.directory),
            "adapter": str(self.adapter),
            "base": self.base,
            "method": self.method,
            "validation_loss": training.validation_loss,
            "steps": training.steps,
            "tokens": training.tokens,
            "tokens_computed": counts.tokens_computed,
            "saved_by_padding": counts.saved_by_padding,
            "saved_by_sharing": counts.saved_by_sharing,
            "tokens_per_second": training.tokens_per_second,
            "seconds": training.seconds,
            "compile_seconds": training.compile_seconds,
            "peak_memory": training.peak_memory,
            "trainable_parameters": training.trainable_parameters,
            "all_parameters": training.all_parameters,
            "operations": training.operations,
            "matrix_speed": training.matrix_speed,
            "share_of_matrix_speed": training.achieved,
            "batching": asdict(training.layout),
            "kernels": training.kernels,
            "cache_frozen": None if training.cache is None else asdict(training.cache),
            "tokens_skipping_lower_layers": training.tally.skipped_tokens,
            "train_rows": self.train_rows,
            "validation_rows": self.validation_rows,
            "truncated": self.truncated,
            "leaks": self.leaks,
            "left_out": [asdict(row) for row in self.left_out],
            "resumed_from": self.resumed_from,
            **({} if mixture is None else {"tasks": [asdict(share) for share in mixture.shares]}),
        }


def run(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    keep_checkpoints: bool = False,
    measure_speed: bool | None = None,
    report: Callable[[Report], None] | None = None,
    notify: Callable[[str], None] | None = None,
    base: Base | None = None,
) -> TrainedRun:
    """Train what a recipe describes.

    Args:
        recipe: The recipe; the run directory is its `output`.
        resume: Continue the interrupted run in that directory. With the same recipe, data, releases and
            number of threads, the adapter has the same bits as without the interruption.
        overwrite: Remove a run that is in that directory first.
        keep_checkpoints: Leave the checkpoints in place at the end.
        measure_speed: As for `train_model`.
        report: Called after every step and every validation.
        notify: Receives a line about each stage and each doubt.
        base: The recipe's base, already loaded and with nothing attached, for several runs over one copy; it is
            given back as it was. None loads it.

    Raises:
        RunError: The directory holds something else, there is nothing to resume, the recipe, the data or
            the base changed since the interruption, or the training failed.
        DataError: A row or a file can't be used.
        StoreError: The base can't be loaded, or another process is training in the directory.
    """
    directory = Path(recipe.output)
    _check_place(directory, resume=resume, overwrite=overwrite)
    with held(directory):
        _enter(directory, recipe, resume=resume, overwrite=overwrite)
        say = notify or (lambda _: None)
        return _train(recipe, directory, resume, keep_checkpoints, measure_speed, report, say, base)


def _train(
    recipe: Recipe,
    directory: Path,
    resume: bool,
    keep_checkpoints: bool,
    measure_speed: bool | None,
    report: Callable[[Report], None] | None,
    say: Callable[[str], None],
    shared: Base | None,
) -> TrainedRun:
    splits = read_splits(recipe.data)
    base = shared or load_base(recipe.base, dtype=recipe.training.dtype, notify=say)
    if base.is_encoder:
        raise RunError(
            f"base {recipe.base!r} is an encoder, which writes no text; a recipe trains one that does."
        )
    data = encode_splits(splits, recipe.data, base.tokenizer, encoder_decoder=base.is_encoder_decoder)
    _describe_data(say, data, leaks=len(splits.leaks))

    identity = _identity(base, data)
    checkpoints = directory / "checkpoints"
    checkpoint = latest_checkpoint(checkpoints) if resume else None
    if checkpoint is not None:
        _check_identity(checkpoint, identity, say)
        say(f"resuming after step {checkpoint.position.step}")
    elif resume:
        say("no checkpoint was written before the interruption; starting at the beginning")
    if not resume:
        atomic_write(directory / RECIPE_NAME, recipe.to_yaml())
        atomic_write(directory / "environment.json", _json(_environment(recipe)))

    # The adapter's first weights come from the seed, as everything random after them does.
    set_seed(recipe.training.seed)
    task_type = "SEQ_2_SEQ_LM" if base.is_encoder_decoder else "CAUSAL_LM"
    steps = total_steps(base.model, recipe.training, data.train, data.mixture)
    config = recipe.method.peft_config(task_type, steps=steps)
    model = get_peft_model(base.model, config)
    giving_back = contextlib.ExitStack()
    if shared is not None and model.tuner.in_layers:
        giving_back.callback(model.unload)
    with (
        giving_back,
        RunLog(directory / LOG_NAME, after=checkpoint.position.step if checkpoint else None) as log,
    ):

        def record(event: Report) -> None:
            log.write(event)
            if report is not None:
                report(event)

        training = train_model(
            model,
            data.train,
            data.validation,
            recipe.training,
            pad_id=_pad_id(base),
            mixture=data.mixture,
            report=record,
            notify=say,
            checkpoint_directory=checkpoints,
            resume_from=checkpoint,
            identity=identity,
            tensorboard_directory=directory / "tensorboard",
            measure_speed=measure_speed,
        )
        loss = training.validation_loss
        save_adapter(
            model,
            directory / "adapter",
            Description(
                method=recipe.method.name,
                base=base.name,
                fingerprint=base.fingerprint,
                template=None if recipe.data.tasks else recipe.data.prompt_template().to_dict(),
                templates={name: found.to_dict() for name, found in recipe.data.task_templates().items()}
                or None,
                encoding=data.mode,
                recipe=recipe.model_dump(mode="json"),
                scores={} if loss is None else {"validation_loss": loss},
            ),
        )
        note_verdict(directory / "adapter", base.model)
    finished = TrainedRun(
        directory=directory,
        adapter=directory / "adapter",
        base=base.name,
        method=recipe.method.name,
        train_rows=len(data.train),
        validation_rows=len(data.validation),
        left_out=data.left_out,
        truncated=data.truncated,
        leaks=len(splits.leaks),
        resumed_from=checkpoint.position.step if checkpoint else None,
        mixture=data.mixture,
        training=training,
    )
    atomic_write(directory / "scores.json", _json(finished.to_dict()))
    if not keep_checkpoints:
        shutil.rmtree(checkpoints, ignore_errors=True)
    return finished


def _check_place(directory: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse what can be refused without touching anything."""
    if resume and overwrite:
        raise RunError("--resume continues what --overwrite removes; give one of them.")
    if directory.exists() and not directory.is_dir():
        raise RunError(
            f"{directory}: the run directory's name is taken by a file. Set output to another one."
        )
    if resume and not (directory / RECIPE_NAME).is_file():
        raise RunError(f"{directory}: there is no run to resume here. Leave --resume out to start one.")


def _enter(directory: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Make sure that the run directory, which is there by now, is what the options say it is."""
    clean_leftovers(directory)
    if resume:
        if (directory / "scores.json").is_file():
            raise RunError(f"{directory}: the run is complete, so there is nothing to resume.")
        _check_recipe(directory, recipe)
    elif any(directory.iterdir()):
        if not (directory / RECIPE_NAME).is_file():
            raise RunError(
                f"{directory}: the directory isn't empty and holds no run. Set output to another one, or empty it."
            )
        if not overwrite:
            raise RunError(
                f"{directory}: there is a run here already. Continue it with --resume, replace it with --overwrite, "
                "or set output to another directory."
            )
        # The recipe goes last: while it is there, an interrupted removal still counts as a run.
        for entry in sorted(directory.iterdir(), key=lambda entry: entry.name == RECIPE_NAME):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _check_recipe(directory: Path, recipe: Recipe) -> None:
    """Refuse to continue a run with another recipe: its past steps couldn't be repeated with it."""
    before = _flat(load_recipe(directory / RECIPE_NAME).model_dump(mode="json"))
    now = _flat(recipe.model_dump(mode="json"))
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key) and key != "output"]
    if changed:
        shown = "; ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in changed)
        raise RunError(
            f"{directory}: the recipe changed since the run began: {shown}. Resume with the former recipe "
            f"({directory / RECIPE_NAME}), or start anew with --overwrite."
        )


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _identity(base: Base, data: TokenSplits) -> dict[str, object]:
    """What the remaining steps of an interrupted run depend on besides the recipe."""
    return {
        "train": content_hash(data.train),
        "validation": content_hash(data.validation),
        "base": base.fingerprint.to_dict(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "manytune": __version__,
    }


def _check_identity(
    checkpoint: Checkpoint, identity: Mapping[str, object], say: Callable[[str], None]
) -> None:
    before = checkpoint.identity
    for key, what in (("train", "training rows"), ("validation", "validation rows"), ("base", "base")):
        if before.get(key) != identity[key]:
            raise RunError(
                f"{checkpoint.path}: the {what} changed since the run was interrupted. Restore what was there, or "
                "start anew with --overwrite."
            )
    for key in ("threads", "torch", "transformers", "manytune"):
        if before.get(key) != identity[key]:
            say(
                f"warning: {key} was {before.get(key)} before the interruption and is {identity[key]} now, so the "
                "adapter may differ in its last bits from that of an uninterrupted run"
            )


def _describe_data(say: Callable[[str], None], data: TokenSplits, *, leaks: int) -> None:
    say(f"{len(data.train):,} rows to train on, {len(data.validation):,} to validate on")
    for share in data.mixture.shares if data.mixture else ():
        say(
            f"task {share.name}: {share.rows:,} rows, {share.rows_per_epoch:,} in an epoch ({share.rate:.1%})"
        )
    for row in data.left_out[:5]:
        say(f"left out: {row.where}: {row.reason}")
    if len(data.left_out) > 5:
        say(f"left out: {len(data.left_out) - 5:,} more rows; scores.json will name them")
    if data.truncated:
        say(f"{data.truncated:,} prompts were cut to data.max_length")
    if leaks:
        say(f"warning: {leaks:,} prompts occur in more than one split, so scores partly measure memory")


def _pad_id(base: Base) -> int:
    found = base.tokenizer.pad_token_id
    return found if isinstance(found, int) else 0


def _environment(recipe: Recipe) -> dict[str, Any]:
    cuda = torch.cuda.is_available() and recipe.training.device != "cpu"
    return {
        "started": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "manytune": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
