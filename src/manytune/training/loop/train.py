"""Training a model on sequences in memory: what `manytune train`, `compare` and the demo have in common."""

from __future__ import annotations

import importlib.util
import math
import resource
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from manytune.data.encode import Encoded
from manytune.data.mixing import Mixture
from manytune.errors import RunError
from manytune.kernels.build import prepare_kernels
from manytune.training.batches import builder
from manytune.training.loop.background import BackgroundBuilder
from manytune.training.loop.counters import Tally
from manytune.training.loop.loss import mean_loss
from manytune.training.loop.method_hooks import method_callbacks
from manytune.training.loop.trainer import AdapterTrainer
from manytune.training.progress import Report, StepReport, ValidationReport
from manytune.training.recipe import TrainingRecipe
from manytune.training.resume import Checkpoint
from manytune.training.speed.chunked_cross_entropy import loss_sum
from manytune.training.speed.compilation import compiled_layers
from manytune.training.speed.flops import matrix_speed
from manytune.training.speed.frozen_layers import CacheSize, FrozenLayers, cache_frozen_layers, computed
from manytune.training.speed.layout_choice import LayoutChoice, batch_builder, choose_layout, prepared
from manytune.training.speed.operations import ModelSize
from manytune.training.training_plan import Schedule, schedule_of

_LONG_RUN = 60.0  # seconds of steps, beside which a second of measuring doesn't matter


@dataclass(frozen=True)
class TrainingResult:
    """What a training cost and how it went.

    Attributes:
        steps: Optimizer steps done in all.
        tally: What was computed in all.
        step_seconds: Time spent in training steps.
        seconds: Time in all: compiling, steps, validation and checkpoints; interruptions not counted.
        compile_seconds: What `training.compile` took before the first step; None without it.
        peak_memory: The most memory in use at once, in bytes: of the GPU if one was used, else of the
            process since it started.
        trainable_parameters: Numbers that were trained.
        all_parameters: Numbers of the model with what was attached to it.
        operations: What the steps couldn't do without, in floating-point operations; None if the model's can't be
            counted.
        matrix_speed: The machine's matrix products at the model's shapes, in operations a second; None if it wasn't
            measured.
        layout: How the batches were laid out, and why not as asked if so.
        kernels: What the C++ kernels computed, or why there are none; None where they have no part: on a GPU, in
            bfloat16.
        cache: What `training.cache_frozen` kept; None without it.
        step_reports: One for each step of this process; those before a `--resume` aren't in it.
        validation_reports: The same for validations; the first is the model before training.
    """

    steps: int
    tally: Tally
    step_seconds: float
    seconds: float
    compile_seconds: float | None
    peak_memory: int
    trainable_parameters: int
    all_parameters: int
    operations: int | None
    matrix_speed: float | None
    layout: LayoutChoice
    kernels: str | None
    cache: CacheSize | None
    step_reports: tuple[StepReport, ...]
    validation_reports: tuple[ValidationReport, ...]

    @property
    def tokens(self) -> int:
        """Input tokens read in all, pad tokens not counted."""
        return self.tally.counts.tokens_in

    @property
    def tokens_per_second(self) -> float:
        """Training throughput."""
        return self.tokens / self.step_seconds if self.step_seconds else 0.0

    @property
    def achieved(self) -> float | None:
        """Share of the machine's matrix speed that the steps reached, counting only what they couldn't do without."""
        if self.operations is None or self.matrix_speed is None or not self.step_seconds:
            return None
        return self.operations / (self.step_seconds * self.matrix_speed)

    @property
    def validation_loss(self) -> float | None:
        """The last validation loss; None if there were no validation rows."""
        return self.validation_reports[-1].validation_loss if self.validation_reports else None


class _OneDevice(TrainingArguments):
    """transformers would spread a batch over every GPU that it sees; a packed batch can't be cut."""

    @property
    def n_gpu(self) -> int:
        """At most one."""
        return min(1, int(super().n_gpu))


def train_model(
    model: nn.Module,
    train: Sequence[Encoded],
    validation: Sequence[Encoded],
    settings: TrainingRecipe,
    *,
    pad_id: int,
    mixture: Mixture | None = None,
    report: Callable[[Report], None] | None = None,
    notify: Callable[[str], None] | None = None,
    checkpoint_directory: Path | None = None,
    resume_from: Checkpoint | None = None,
    identity: Mapping[str, object] | None = None,
    tensorboard_directory: Path | None = None,
    measure_speed: bool | None = None,
) -> TrainingResult:
    """Train the parameters that require a gradient, in place.

    Args:
        model: A causal language model or an encoder-decoder with a method attached, on any device; it ends in
            evaluation mode on the device that `settings.device` names.
        train: The sequences to learn from.
        validation: The sequences to measure the loss on, before training, while it goes on and at its end;
            may be empty.
        settings: The recipe's training section; `dtype` isn't read, since the model is loaded.
        pad_id: Any valid token id; it only ever stands in masked columns.
        mixture: Which of `train`'s rows an epoch holds, if they are several tasks'; None for all.
        report: Called after every step and every validation.
        notify: Receives a line if the model can't train with the batches that the settings ask for, and one about
            what `settings.cache_frozen` keeps.
        checkpoint_directory: Where checkpoints go, every `settings.checkpoint_every` steps; None keeps
        none.
        resume_from: The checkpoint to continue from, as `latest_checkpoint` returns it.
        identity: What a resumed run must agree with; kept in the checkpoints.
        tensorboard_directory: Where `settings.tensorboard` puts the event files.
        measure_speed: Whether to measure the machine's matrix products for a second afterwards; None does it if the
            steps took so long that a second doesn't matter.

    Raises:
        RunError: Nothing is trainable, the loss or the gradient isn't finite, the device or TensorBoard
            isn't there, no parameter changed, or `settings.cache_frozen` can't be.
        RecipeError: `settings.batching` names no layout.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise RunError(
            "no parameter requires a gradient, so there is nothing to train. Attach a method first."
        )
    builder(settings.batching)  # a name that is wrong is an error on any model
    layout = choose_layout(model, settings.batching)
    if layout.note is not None and notify is not None:
        notify(layout.note)
    build = batch_builder(model, layout)
    schedule = schedule_of(settings, train, mixture, layout=layout.used)
    before = {name: _checksum(parameter) for name, parameter in trainable.items()}
    steps_reported: list[StepReport] = []
    validations: list[ValidationReport] = []

    def record(event: Report) -> None:
        (steps_reported if isinstance(event, StepReport) else validations).append(event)  # type: ignore[arg-type]
        if report is not None:
            report(event)

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    config: Any = model.config
    packed = prepared(model, layout)
    background = BackgroundBuilder(partial(build, pad_id=pad_id))
    frozen: FrozenLayers | None = None
    with tempfile.TemporaryDirectory() as scratch, packed, background:
        if (kernels := prepare_kernels(model)) is not None:
            kernels.used.clear()
        if settings.cache_frozen:
            frozen = cache_frozen_layers(model, build, (*train, *validation), pad_id=pad_id)
            if notify is not None:
                notify(frozen.size.note)
        lower = frozen or computed
        trainer = AdapterTrainer(
            model,
            _arguments(
                settings,
                schedule=schedule,
                validates=bool(validation),
                resuming=resume_from is not None,
                checkpoints=checkpoint_directory is not None,
                scratch=scratch,
                use_cache=config.use_cache,
            ),
            train=train,
            validation=validation,
            build=build,
            background=background,
            lower=lower,
            schedule=schedule,
            group_prefixes=settings.group_prefixes,
            mixture=mixture,
            pad_id=pad_id,
            resume_from=resume_from,
            checkpoint_directory=checkpoint_directory,
            identity=identity or {},
            callbacks=[
                *method_callbacks(model),
                *(_tensorboard(tensorboard_directory) if settings.tensorboard else []),
            ],
            report=record,
        )
        trainer.remove_callback(PrinterCallback)
        compile_seconds = None
        last_step = schedule.steps
        if resume_from is not None and resume_from.position.step >= last_step:
            # The last step was done and saved; only what comes after it is missing. The loop would take one
            # more.
            resume_from.restore_weights(model)
            if validation:
                batch_size = settings.batch_size
                loss = mean_loss(model, validation, build, batch_size=batch_size, pad_id=pad_id, lower=lower)
                record(ValidationReport(last_step, last_step, loss, trainer.clock.seconds))
        else:

            def first_loss() -> torch.Tensor:
                rows = (
                    schedule.batches[0] if schedule.batches else range(min(settings.batch_size, len(train)))
                )
                batch = build([train[row] for row in rows], pad_id=pad_id).to(trainer.args.device)
                return loss_sum(model, batch) / batch.targets

            with compiled_layers(model.train(), first_loss, enabled=settings.compile) as compile_seconds:
                trainer.train(
                    resume_from_checkpoint=str(resume_from.path) if resume_from is not None else None
                )
    kernels = prepare_kernels(model)  # again: it may have gone to a GPU
    model.eval()
    _check_changed(trainable, before, settings)
    tally, size = trainer.clock.tally, ModelSize.of(model, frozen.layers if frozen else ())
    if measure_speed is None:
        measure_speed = size is not None and trainer.clock.step_seconds >= _LONG_RUN
    memory = peak_memory()  # of the training, without what measuring takes
    batches = last_step * settings.accumulation
    return TrainingResult(
        steps=last_step,
        tally=tally,
        step_seconds=trainer.clock.step_seconds,
        seconds=trainer.clock.seconds,
        compile_seconds=compile_seconds,
        peak_memory=memory,
        trainable_parameters=sum(parameter.numel() for parameter in trainable.values()),
        all_parameters=sum(parameter.numel() for parameter in model.parameters()),
        operations=None if size is None else size.training(tally),
        matrix_speed=matrix_speed(model, rows=tally.counts.tokens_computed // batches)
        if measure_speed
        else None,
        layout=layout,
        kernels=None if kernels is None else kernels.summary,
        cache=frozen.size if frozen else None,
        step_reports=tuple(steps_reported),
        validation_reports=tuple(validations),
    )


def peak_memory() -> int:
    """The most memory in use at once, in bytes: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def _warmup_steps(settings: TrainingRecipe, steps: int) -> int:
    """Steps with a rising rate. The first has none at all, so the last step is never one of them."""
    return min(math.ceil(settings.warmup * steps), steps - 1)


def check_device(settings: TrainingRecipe) -> None:
    """Refuse a device that isn't there.

    Raises:
        RunError: The settings name one that torch doesn't find.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise RunError('training.device is "cuda", and torch finds no CUDA device. Use "auto" or "cpu".')


def _arguments(
    settings: TrainingRecipe,
    *,
    schedule: Schedule,
    validates: bool,
    resuming: bool,
    checkpoints: bool,
    scratch: str,
    use_cache: bool,
) -> TrainingArguments:
    check_device(settings)
    cuda = torch.cuda.is_available()
    rate = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
    return _OneDevice(
        output_dir=scratch,  # transformers must create one; nothing of ours goes there
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=schedule.epochs,
        max_steps=schedule.steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=rate,
        warmup_steps=_warmup_steps(settings, schedule.steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        use_cache=use_cache,
        seed=settings.seed,
        use_cpu=settings.device == "cpu",
        dataloader_pin_memory=cuda and settings.device != "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validates else "no",
        eval_steps=settings.eval_every or schedule.steps_per_epoch,
        eval_on_start=validates and not resuming,
        save_strategy="steps" if checkpoints and settings.checkpoint_every else "no",
        save_steps=settings.checkpoint_every or 1,
        disable_tqdm=True,
        report_to="none",
    )


def _tensorboard(directory: Path | None) -> list[TrainerCallback]:
    if directory is None:
        raise RunError(
            "training.tensorboard needs a directory for its event files; pass tensorboard_directory."
        )
    if importlib.util.find_spec("tensorboard") is None:
        raise RunError(
            "training.tensorboard needs the package tensorboard. Run: pip install 'manytune[track]', or set "
            "training.tensorboard to false."
        )
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(str(directory)))]


def _checksum(parameter: torch.Tensor) -> int:
    """The sum of a parameter's bit patterns: another value, another sum, and no copy."""
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[parameter.element_size()]
    return int(parameter.detach().contiguous().view(bits).sum(dtype=torch.int64))


def _check_changed(
    trainable: Mapping[str, torch.Tensor], before: Mapping[str, int], settings: TrainingRecipe
) -> None:
    if any(_checksum(parameter) != before[name] for name, parameter in trainable.items()):
        return
    raise RunError(
        f"training changed nothing: all {len(trainable)} trainable tensors are what they were. The learning rate "
        f"was at most {settings.learning_rate:g} (training.learning_rate); a higher one would change them."
    )
