"""A training run: from a recipe to a directory that holds everything about it (`store/run_directory.py`)."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from manytune.atomic import atomic_write, clean_leftovers
from manytune.data.mixing import Mixture
from manytune.data.records import Rejected
from manytune.errors import RunError
from manytune.free_memory import naming_short_memory
from manytune.model.peft_model import PeftModel
from manytune.sharded import has_shards
from manytune.store.adapters import save_adapter
from manytune.store.base import Base
from manytune.store.locking import held
from manytune.store.manifest import Description
from manytune.store.run_contents import is_of_a_run, require_removable
from manytune.store.run_directory import RunDirectory, RunScores
from manytune.store.run_log import Report
from manytune.store.servability import note_verdict
from manytune.training.agreed_checkpoint import agreed_checkpoint
from manytune.training.data_summary import describe_data
from manytune.training.dates import now
from manytune.training.distributed.processes import Processes, joined
from manytune.training.distributed.sharding import (
    check_base_to_shard,
    check_recipe_to_shard,
    sharding_here_alone,
    shards,
)
from manytune.training.environment import environment
from manytune.training.identity import check_agreement, check_identity, check_recipe, run_identity
from manytune.training.inputs import RunInputs, attach_method, read_inputs
from manytune.training.loop.optimizer import check_optimizer
from manytune.training.loop.reporting import check_reporters
from manytune.training.loop.result import TrainingResult
from manytune.training.loop.train import train_model
from manytune.training.loop.validation import ValidationScores
from manytune.training.precision import resolve_dtype
from manytune.training.recipe import Recipe, load_recipe
from manytune.training.recording import recording
from manytune.training.resume import Checkpoint, Checkpoints, latest_checkpoint
from manytune.training.run_place import check_place
from manytune.training.starting_adapter import with_its_method

_LESS_MEMORY = (
    "A smaller training.batch_size with more training.accumulation needs less, as does a shorter data.max_length. What "
    "is done is kept: continue with --resume, or with --overwrite if the recipe changes."
)

Scorer = Callable[[RunInputs], ValidationScores]
"""From what a run starts from, its validation rows among it, to what scores the model's answers to them."""


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A run that ended well.

    Attributes:
        directory: The run directory.
        adapter: The adapter's directory in it.
        base: The base's name.
        method: The method's name.
        dtype: Of the base's weights and of products with them.
        activations: The dtype of hidden states on a bfloat16 base; "base" is that, too.
        tf32: Whether float32 products may be rounded to TF32 on a GPU.
        keep: Which step is kept: "last" or "best".
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
    dtype: str
    activations: str
    tf32: bool
    keep: str
    train_rows: int
    validation_rows: int
    left_out: tuple[Rejected, ...]
    truncated: int
    leaks: int
    resumed_from: int | None
    mixture: Mixture | None
    training: TrainingResult

    @property
    def scores(self) -> RunScores:
        """What `scores.json` holds; the course of the training is in `log.jsonl`."""
        training, tokens = self.training, self.training.counters.tokens
        return RunScores(
            directory=str(self.directory),
            adapter=str(self.adapter),
            base=self.base,
            method=self.method,
            dtype=self.dtype,
            activations=self.activations,
            tf32=self.tf32,
            validation_loss=training.validation_loss,
            kept=asdict(training.kept),
            steps=training.steps,
            tokens=training.tokens,
            tokens_computed=tokens.tokens_computed,
            saved_by_padding=tokens.saved_by_padding,
            saved_by_sharing=tokens.saved_by_sharing,
            tokens_per_second=training.tokens_per_second,
            seconds=training.seconds,
            compile_seconds=training.compile_seconds,
            peak_memory=training.peak_memory,
            trainable_parameters=training.trainable_parameters,
            all_parameters=training.all_parameters,
            experts=None if training.experts is None else asdict(training.experts),
            required_flops=training.required_flops,
            matmul_flops_per_second=training.matmul_flops_per_second,
            mfu=training.mfu,
            batching=asdict(training.layout),
            kernels=training.kernels,
            cache_frozen=None if training.cache is None else asdict(training.cache),
            tokens_skipping_lower_layers=training.counters.skipped_tokens,
            train_rows=self.train_rows,
            validation_rows=self.validation_rows,
            truncated=self.truncated,
            leaks=self.leaks,
            left_out=tuple(asdict(row) for row in self.left_out),
            resumed_from=self.resumed_from,
            tasks=None if self.mixture is None else tuple(asdict(share) for share in self.mixture.shares),
        )


def run(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    keep_checkpoints: bool = False,
    measure_flops: bool | None = None,
    report: Callable[[Report], None] | None = None,
    notify: Callable[[str], None] | None = None,
    base: Base | None = None,
    scorer: Scorer | None = None,
    processes: Processes | None = None,
) -> TrainedRun:
    """Train what a recipe describes.

    On several processes each calls it with the same arguments. The first one owns the run directory, and `resume`,
    `overwrite`, `report` and `notify` are its alone.

    Args:
        recipe: The recipe; the run directory is its `output`.
        resume: Continue the interrupted run in that directory. With the same recipe, data, releases and
            number of threads, the adapter has the same bits as without the interruption.
        overwrite: Replace a run that is in that directory, once the new one's data is read. Only what a run wrote is
            removed; where anything else is, nothing is.
        keep_checkpoints: Leave the checkpoints in place at the end.
        measure_flops: As for `train_model`.
        report: Called after every step and every validation.
        notify: Receives a line about each stage and each warning.
        base: The recipe's base, already loaded and with nothing attached, for several runs over one copy; it is
            given back as it was. None loads it.
        scorer: Makes what scores answers to validation prompts, for `training.validation`.
        processes: Those that train together; None for what the launcher set, which is one process without a launcher.

    Raises:
        RunError: The directory holds something else, there is nothing to resume, the recipe, the data or
            the base changed since the interruption, or the training failed.
        DivergedError: The loss or the gradient became NaN or Inf.
        DataError: A row or a file can't be used.
        StoreError: The base can't be loaded, or another process is training in the directory.
        ShortMemoryError: There isn't enough memory; `resume` goes on from the last checkpoint.
    """
    check_optimizer(recipe.training)
    check_reporters(recipe.training)
    recipe = with_its_method(recipe)
    directory = RunDirectory(Path(recipe.output))
    processes = joined(recipe.training.device) if processes is None else processes
    if sharded := shards(recipe.training, processes):
        check_recipe_to_shard(recipe, shares_base=base is not None)
    owns = processes.is_first
    say = (notify if owns else None) or (lambda _: None)
    if owns:
        check_place(directory, resume=resume, overwrite=overwrite)
    short = naming_short_memory(f"{directory.path}: training", instead=_LESS_MEMORY)
    with held(directory.path) if owns else contextlib.nullcontext(), short, sharding_here_alone():
        date = now()
        if owns:
            known = resolve_dtype(recipe, base=base.model if base else None)
            _enter(directory, known, resume=resume, overwrite=overwrite)
            date = (load_recipe(directory.recipe_file).data.date if resume else None) or date
        date = processes.from_first(date)
        inputs = read_inputs(recipe, base=base, date=date, notify=say, on_cpu=sharded)
        if sharded:
            check_base_to_shard(inputs.base.model)
        elif recipe.training.sharding != "none":
            say("one process holds the whole base: training.sharding is for several (--processes)")
        describe_data(say, inputs.data, leaks=len(inputs.splits.leaks))
        checkpoints = _checkpoints(directory, inputs, say, resume=resume, processes=processes)
        if owns and not resume:
            # Only now, when the data is read and the base loaded: a mistake in the new recipe costs no former run.
            _remove_former(directory)
            _describe(directory, inputs, processes)
        with _attached(inputs, shared=base is not None) as model:
            training = _train(
                model,
                directory,
                inputs,
                checkpoints,
                measure_flops=measure_flops,
                scores=scorer(inputs) if scorer and inputs.recipe.training.validation else None,
                report=report,
                say=say,
                processes=processes,
            )
            if owns:
                _save(model, directory, inputs, training)
            elif has_shards(model):
                model.save_pretrained(directory.adapter, is_main_process=False)  # gives its parts
        finished = _finished(directory, inputs, checkpoints.resume_from, training)
        if owns:
            directory.write_scores(finished.scores)
            if not keep_checkpoints:
                shutil.rmtree(directory.checkpoints, ignore_errors=True)
        processes.wait()  # so that no process says that it is done before everything is on the disk
        return finished


def _describe(directory: RunDirectory, inputs: RunInputs, processes: Processes) -> None:
    """Write what the run runs with, and its recipe, from which on it is one that can be resumed."""
    facts = environment(inputs.recipe.training, processes=processes)
    atomic_write(directory.environment_file, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    atomic_write(directory.recipe_file, inputs.recipe.to_yaml())


def _checkpoints(
    directory: RunDirectory,
    inputs: RunInputs,
    say: Callable[[str], None],
    *,
    resume: bool,
    processes: Processes,
) -> Checkpoints:
    """Where states go, and the one that the run continues from, which the first process chooses."""
    identity = run_identity(inputs, processes=processes)
    check_agreement(identity, processes)
    found = latest_checkpoint(directory.checkpoints, say) if resume and processes.is_first else None
    if found is not None:
        check_identity(found, identity, say)
        say(f"resuming after step {found.position.step}")
    elif resume:
        say("no checkpoint was written before the interruption; starting at the first step")
    found = agreed_checkpoint(found, directory.checkpoints, processes)
    return Checkpoints(directory=directory.checkpoints, identity=identity, resume_from=found)


@contextlib.contextmanager
def _attached(inputs: RunInputs, *, shared: bool) -> Iterator[PeftModel]:
    """The base with the recipe's method; a shared one is given back as it was."""
    model = attach_method(inputs)
    try:
        yield model
    finally:
        if shared and model.tuner.in_layers:
            model.unload()


def _train(
    model: PeftModel,
    directory: RunDirectory,
    inputs: RunInputs,
    checkpoints: Checkpoints,
    *,
    measure_flops: bool | None,
    scores: ValidationScores | None,
    report: Callable[[Report], None] | None,
    say: Callable[[str], None],
    processes: Processes,
) -> TrainingResult:
    resumed = checkpoints.resume_from
    after = resumed.position.step if resumed else None
    with recording(directory, after=after, report=report, processes=processes) as recorded:
        return train_model(
            model,
            inputs.rows,
            inputs.recipe.training,
            report=recorded.report,
            notify=say,
            checkpoints=replace(checkpoints, flush=recorded.flush),
            tensorboard_directory=directory.tensorboard,
            measure_flops=measure_flops,
            scores=scores,
            processes=processes,
        )


def _save(model: PeftModel, directory: RunDirectory, inputs: RunInputs, training: TrainingResult) -> None:
    recipe = inputs.recipe
    save_adapter(
        model,
        directory.adapter,
        Description(
            method=recipe.method.name,
            base=inputs.base.name,
            fingerprint=inputs.base.fingerprint,
            template=None
            if recipe.data.tasks or recipe.data.is_conversational or recipe.data.is_labelled
            else recipe.data.prompt_template().to_dict(),
            templates={name: found.to_dict() for name, found in recipe.data.task_templates().items()} or None,
            encoding=inputs.data.mode,
            encoding_options=recipe.data.encoding_options(max_prompt=inputs.data.max_prompt).to_dict()
            or None,
            recipe=recipe.model_dump(mode="json"),
            labels=None if inputs.labels is None else inputs.labels.to_dict(),
            scores=training.kept.measured,
        ),
    )
    note_verdict(directory.adapter, inputs.base.model)


def _finished(
    directory: RunDirectory,
    inputs: RunInputs,
    resumed: Checkpoint | None,
    training: TrainingResult,
) -> TrainedRun:
    data = inputs.data
    return TrainedRun(
        directory=directory.path,
        adapter=directory.adapter,
        base=inputs.base.name,
        method=inputs.recipe.method.name,
        dtype=inputs.recipe.training.dtype,
        activations=inputs.recipe.training.activations,
        tf32=inputs.recipe.training.tf32,
        keep=inputs.recipe.training.keep,
        train_rows=data.train_rows,
        validation_rows=data.validation_rows,
        left_out=data.left_out,
        truncated=data.truncated,
        leaks=len(inputs.splits.leaks),
        resumed_from=resumed.position.step if resumed else None,
        mixture=data.mixture,
        training=training,
    )


def _enter(directory: RunDirectory, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Make sure that the run directory, which is there by now, is what the options say it is."""
    path = directory.path
    clean_leftovers(path)
    check_place(directory, resume=resume, overwrite=overwrite)  # another process may have been here meanwhile
    if resume:
        check_recipe(directory.recipe_file, recipe)
    elif any(path.iterdir()):
        if not is_of_a_run(directory):
            raise RunError(
                f"{path}: the directory isn't empty and holds no run. Set output to another one, or empty it."
            )
        require_removable(directory)


def _remove_former(directory: RunDirectory) -> None:
    """Remove what a former run wrote, but for its recipe and environment, which are about to be replaced.

    While these two are there, an interrupted removal still counts as a run.
    """
    for file in directory.files:
        if file not in (directory.recipe_file, directory.environment_file):
            file.unlink(missing_ok=True)
    for folder in directory.folders:
        shutil.rmtree(folder, ignore_errors=True)
