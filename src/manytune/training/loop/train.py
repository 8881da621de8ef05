"""Training a model on sequences in memory: what `manytune train`, `compare` and the demo have in common."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback

from manytune.errors import RunError
from manytune.kernels.build import prepare_kernels
from manytune.model.accounting import count_experts, count_parameters
from manytune.sharded import own_part
from manytune.store.run_log import Report, StepReport, ValidationReport
from manytune.training.batches import builder
from manytune.training.batches.batch import base_model
from manytune.training.distributed.division import passes_of
from manytune.training.distributed.generators import own_stream
from manytune.training.distributed.gradients import note_on_statistics
from manytune.training.distributed.processes import Processes, joined
from manytune.training.distributed.sharding import shard, sharding_here_alone, shards
from manytune.training.loop.arguments import training_arguments
from manytune.training.loop.background import BackgroundBuilder
from manytune.training.loop.best_step import BestStep
from manytune.training.loop.method_hooks import method_callbacks
from manytune.training.loop.optimizer import check_optimizer, freeze_first_factors
from manytune.training.loop.reporting import reporting_callbacks
from manytune.training.loop.result import TrainingResult
from manytune.training.loop.rows import TrainingRows
from manytune.training.loop.trainer import AdapterTrainer, LoopSetup
from manytune.training.loop.validation import ValidationScores, check_validation
from manytune.training.precision import precision
from manytune.training.recipe import TrainingRecipe
from manytune.training.resume import Checkpoints
from manytune.training.speed.chunked_cross_entropy import loss_sum
from manytune.training.speed.compilation import compiled_layers
from manytune.training.speed.frozen_layers import FrozenLayers, cache_frozen_layers, every_layer_runs
from manytune.training.speed.layout_choice import batch_builder, choose_layout, prepared
from manytune.training.speed.measured_flops import matmul_flops_per_second
from manytune.training.speed.required_flops import ModelSize
from manytune.training.training_plan import plan_training

_LONG_RUN = 60.0  # seconds of steps, compared with which a second of measuring doesn't matter


def train_model(
    model: nn.Module,
    rows: TrainingRows,
    settings: TrainingRecipe,
    *,
    report: Callable[[Report], None] | None = None,
    notify: Callable[[str], None] | None = None,
    checkpoints: Checkpoints | None = None,
    tensorboard_directory: Path | None = None,
    measure_flops: bool | None = None,
    scores: ValidationScores | None = None,
    processes: Processes | None = None,
) -> TrainingResult:
    """Train the parameters that require a gradient, in place.

    On several processes each calls it with the same arguments, trains its part of each step and ends with the same
    weights, or with its parts of them if `settings.sharding` is full; the first one writes what is written.

    Args:
        model: A causal language model, an encoder-decoder or a classifier with a method attached, on any device; it
            ends in evaluation mode on the device that `settings.device` names.
        rows: What it is trained on.
        settings: The recipe's training section. The model is loaded, so its weights keep their dtypes; with
            `dtype: bfloat16` products with the base's own weights are in bfloat16 where these are float32 and train.
        report: Called after every step and every validation.
        notify: Receives a line if the model can't train with the batches that the settings ask for, and one about
            what `settings.cache_frozen` keeps.
        checkpoints: Where states go, every `settings.checkpoint_every` steps, and the one to continue from; None keeps
            none.
        tensorboard_directory: Where TensorBoard's event files go, in the run's directory, whose name integrations show.
        measure_flops: Whether to measure the machine's matrix products for a second afterwards; None does it if the
            steps took so long that a second doesn't matter.
        scores: How answers to validation prompts are scored, for `settings.validation`.
        processes: Those that train together; None for what the launcher set, which is one process without a launcher.

    Raises:
        DivergedError: The loss or the gradient is NaN or Inf.
        RunError: Nothing is trainable, the method's options don't go with the number of steps, the device or a
            package of `report_to` isn't there, no parameter changed, or `settings.cache_frozen` or `settings.sharding`
            can't be.
        RecipeError: `settings.batching` names no layout.
        DataError: A row alone exceeds `settings.token_budget`.
    """
    processes = joined(settings.device) if processes is None else processes
    with sharding_here_alone(), precision(model, settings):
        return _train(
            model,
            rows,
            settings,
            report=report,
            notify=notify,
            checkpoints=checkpoints,
            tensorboard_directory=tensorboard_directory,
            measure_flops=measure_flops,
            scores=scores,
            processes=processes,
        )


def _train(
    model: nn.Module,
    rows: TrainingRows,
    settings: TrainingRecipe,
    *,
    report: Callable[[Report], None] | None,
    notify: Callable[[str], None] | None,
    checkpoints: Checkpoints | None,
    tensorboard_directory: Path | None,
    measure_flops: bool | None,
    scores: ValidationScores | None,
    processes: Processes,
) -> TrainingResult:
    check_validation(settings, validates=bool(rows.validation), scores=scores)
    check_optimizer(settings)
    freeze_first_factors(model, settings)
    _trainable(model)
    builder(settings.batching)  # a name that is wrong is an error on any model
    layout = choose_layout(model, settings.batching)
    for note in (layout.note, note_on_statistics(model, processes)):
        if note is not None and notify is not None:
            notify(note)
    plan = plan_training(settings, rows, layout=layout)
    callbacks = method_callbacks(model, steps=plan.steps)
    if processes.is_first:
        callbacks += reporting_callbacks(settings, tensorboard_directory)
    if is_sharded := shards(settings, processes):
        shard(model, settings, processes)
    trainable = _trainable(model)
    before = {name: _checksum(parameter) for name, parameter in trainable.items()}
    history = _History(report)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    build = batch_builder(model, layout)
    background = BackgroundBuilder(partial(build, pad_id=rows.pad_id))
    resume_from = checkpoints.resume_from if checkpoints else None
    scores = scores if settings.validation is not None else None
    best = BestStep(settings, {} if scores is None else scores.higher_is_better)
    if resume_from is not None:
        resume_from.restore_best(best)
    attention = base_model(model).config._attn_implementation
    with tempfile.TemporaryDirectory() as scratch, prepared(model, layout), background:
        if (kernels := prepare_kernels(model)) is not None:
            kernels.used.clear()
        frozen = _cache(model, rows, layout_builder=build, notify=notify) if settings.cache_frozen else None
        config: Any = model.config
        arguments = training_arguments(
            settings,
            plan,
            validates=bool(rows.validation),
            resumes=resume_from is not None,
            saves=checkpoints is not None,
            use_cache=bool(getattr(config, "use_cache", False)),
            scratch=scratch,
            run_name=None if tensorboard_directory is None else tensorboard_directory.parent.name,
            processes=processes,
            sharded=is_sharded,
        )
        setup = LoopSetup(
            rows=rows,
            plan=plan,
            settings=settings,
            build=build,
            background=background,
            lower=frozen or every_layer_runs,
            checkpoints=checkpoints,
            best=best,
            scores=scores,
            attention=attention,
            report=history,
            processes=processes,
        )
        trainer = AdapterTrainer(model, arguments, setup, callbacks)
        trainer.remove_callback(PrinterCallback)
        compile_seconds, steps = _run(model, trainer, setup)
    kernels = prepare_kernels(model)  # again: it may have gone to a GPU
    model.eval()
    kept = best.finish(model, history.last_validation, step=steps, steps=plan.steps)
    _check_changed(trainable, before, settings, processes)
    # Of the training, without what measuring takes.
    memory = round(processes.largest(peak_memory()))
    counters, size = trainer.clock.counters, ModelSize.of(model, frozen.layers if frozen else ())
    if measure_flops is None:
        measure_flops = size is not None and trainer.clock.step_seconds >= _LONG_RUN
    passes = passes_of(settings.accumulation, processes.count) * processes.count
    tokens_of_a_batch = counters.tokens.tokens_computed // (steps * passes)
    return TrainingResult(
        steps=steps,
        kept=kept,
        counters=counters,
        step_seconds=trainer.clock.step_seconds,
        seconds=trainer.clock.seconds,
        compile_seconds=compile_seconds,
        peak_memory=memory,
        trainable_parameters=sum(parameter.numel() for parameter in trainable.values()),
        all_parameters=count_parameters(model)[1],
        experts=count_experts(model),
        required_flops=None if size is None else size.training_flops(counters),
        matmul_flops_per_second=processes.count
        * matmul_flops_per_second(
            model,
            rows=tokens_of_a_batch,
            dtype=torch.bfloat16 if settings.dtype == "bfloat16" else None,
        )
        if measure_flops and processes.is_first
        else None,
        layout=layout,
        kernels=None if kernels is None else kernels.summary,
        cache=frozen.size if frozen else None,
        step_reports=tuple(history.steps),
        validation_reports=tuple(history.validations),
    )


def peak_memory() -> int:
    """The most memory in use at once, in bytes: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


class _History:
    """Keeps a training's reports, and passes them on."""

    def __init__(self, report: Callable[[Report], None] | None) -> None:
        self.steps: list[StepReport] = []
        self.validations: list[ValidationReport] = []
        self._report = report

    @property
    def last_validation(self) -> ValidationReport | None:
        """The last one in this process."""
        return self.validations[-1] if self.validations else None

    def __call__(self, event: Report) -> None:
        if isinstance(event, StepReport):
            self.steps.append(event)
        else:
            self.validations.append(event)
        if self._report is not None:
            self._report(event)


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not found:
        raise RunError(
            "no parameter requires a gradient, so there is nothing to train. Attach a method first."
        )
    return found


def _cache(
    model: nn.Module, rows: TrainingRows, *, layout_builder: Any, notify: Callable[[str], None] | None
) -> FrozenLayers:
    every_row = (*rows.train, *rows.validation)
    frozen = cache_frozen_layers(model, layout_builder, every_row, pad_id=rows.pad_id)
    if notify is not None:
        notify(frozen.size.note)
    return frozen


def _run(model: nn.Module, trainer: AdapterTrainer, setup: LoopSetup) -> tuple[float | None, int]:
    """Go through the loop, or through what is left of it; gives what compiling took, and the steps done."""
    rows, plan, settings = setup.rows, setup.plan, setup.settings
    resume_from = setup.resume_from
    if resume_from is not None and (resume_from.position.step >= plan.steps or setup.best.stops):
        # The last step was done and saved; only what comes after it is missing. The loop would take one more.
        resume_from.restore_weights(model)
        if rows.validation:
            setup.report(trainer.measured(resume_from.position.step))
        return None, resume_from.position.step

    def first_loss() -> Tensor:
        first = plan.batches[0] if plan.batches else range(min(settings.batch_size, len(rows.rows)))
        batch = setup.build(rows.sequences(first), pad_id=rows.pad_id).to(trainer.args.device)
        return loss_sum(model, batch) / batch.targets

    own_stream(setup.processes, seed=settings.seed)
    with compiled_layers(model.train(), first_loss, enabled=settings.compile) as compile_seconds:
        trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from.path))
    return compile_seconds, trainer.state.global_step


def _checksum(parameter: Tensor) -> int:
    """The sum of the bit patterns of this process's part: another value, another sum, and no copy."""
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[parameter.element_size()]
    return int(own_part(parameter.detach()).contiguous().view(bits).sum(dtype=torch.int64))


def _check_changed(
    trainable: Mapping[str, Tensor],
    before: Mapping[str, int],
    settings: TrainingRecipe,
    processes: Processes,
) -> None:
    if processes.largest(any(_checksum(parameter) != before[name] for name, parameter in trainable.items())):
        return
    raise RunError(
        f"training changed nothing: all {len(trainable)} trainable tensors are what they were. The learning rate "
        f"was at most {settings.learning_rate:g} (training.learning_rate); a higher one would change them."
    )
