"""transformers' Trainer with our batches, our loss, our samplers and checkpoints without pickle.

The loop itself, the optimizer, the lr_scheduler, gradient clipping, mixed devices and the reporting
integrations are transformers'. What is replaced are public methods, and five private ones: those through which it
writes and reads checkpoints, and the one that wraps the model; `tests/training/loop/test_trainer.py` fails when a
release renames one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from manytune.data.encoding.encoded import Encoded
from manytune.errors import DivergedError, RunError
from manytune.layer_forwards import uncompiled
from manytune.store.run_log import Report, StepReport, ValidationReport
from manytune.training.batches import AnyBatch, Builder
from manytune.training.distributed.gradients import loss_module
from manytune.training.distributed.processes import Processes
from manytune.training.loop.background import BackgroundBuilder, PendingBatch
from manytune.training.loop.best_step import BestStep
from manytune.training.loop.clock import Clock
from manytune.training.loop.loader import RowDataset, train_loader
from manytune.training.loop.loss import mean_loss
from manytune.training.loop.optimizer import parameter_groups, project_gradients
from manytune.training.loop.rows import TrainingRows
from manytune.training.loop.validation import ValidationScores, as_after_training, scores_are_due
from manytune.training.recipe import TrainingRecipe
from manytune.training.resume import Checkpoint, Checkpoints, save_checkpoint
from manytune.training.speed.frozen_layers import LowerLayers
from manytune.training.training_plan import TrainingPlan


@dataclass(frozen=True, kw_only=True)
class LoopSetup:
    """What the loop needs in addition to the model and transformers' arguments.

    Attributes:
        rows: What is trained on.
        plan: The steps, and the batches if a token budget decides them.
        settings: The recipe's training section.
        build: The batch layout.
        background: Builds the batches that are trained on.
        lower: Whether the lower layers run on a batch.
        checkpoints: Where states go, and the one to continue from; None keeps none.
        best: Follows the validations.
        scores: How answers are scored; None measures none.
        attention: The attention function that the model has outside of training.
        report: Called after every step and every validation.
        processes: Those that train together.
    """

    rows: TrainingRows
    plan: TrainingPlan
    settings: TrainingRecipe
    build: Builder
    background: BackgroundBuilder
    lower: LowerLayers
    checkpoints: Checkpoints | None
    best: BestStep
    scores: ValidationScores | None
    attention: str
    report: Callable[[Report], None]
    processes: Processes

    @property
    def resume_from(self) -> Checkpoint | None:
        """The state to continue from; None starts at the first step."""
        return self.checkpoints.resume_from if self.checkpoints else None


class AdapterTrainer(Trainer):
    """Trains the parameters that require a gradient.

    Args:
        model: The base with a method attached.
        args: transformers' arguments.
        setup: What else the loop works with.
        callbacks: More of transformers' callbacks, such as TensorBoard's.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the whole accumulation window's targets

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        setup: LoopSetup,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        self._module = model
        self._setup = setup
        self._window_rows: list[str] = []
        self.clock = Clock(setup.resume_from.position if setup.resume_from else None, setup.processes)
        super().__init__(
            model=model,
            args=args,
            data_collator=self._collate,
            train_dataset=RowDataset(setup.rows.rows),
            eval_dataset=RowDataset([(sequence,) for sequence in setup.rows.validation]),
            callbacks=[_Reporter(self, setup.report), *callbacks],
        )

    # Data
    # ------------------------------------------------------------------------------------------------------

    def _collate(self, rows: Sequence[tuple[Encoded, ...]]) -> dict[str, PendingBatch]:
        # The loader asks for one batch more than the loop has got, so that it is built while the model computes.
        return {"batch": self._setup.background([sequence for row in rows for sequence in row])}

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's part of the rows."""
        setup = self._setup
        return train_loader(
            setup.rows,
            setup.plan,
            setup.settings,
            collate=self._collate,
            device=self.args.device,
            pin_memory=self.args.dataloader_pin_memory,
            processes=setup.processes,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """One accumulation window's batches for this process, and the number of target tokens in all processes'."""
        window, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._window_rows = [row for inputs in window for row in inputs["batch"].rows]
        own = sum(inputs["batch"].targets for inputs in window)
        return window, self._setup.processes.sum([own])[0]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Transformers' optimizer of the recipe's name, over our groups of parameters.

        Raises:
            RunError: An option can't be used, or `loraplus_lr_ratio` doesn't go with the method.
        """
        settings = self._setup.settings
        kind, usual = self.get_optimizer_cls_and_kwargs(self.args)
        groups = parameter_groups(
            self._module, settings, decaying=set(self.get_decay_parameter_names(self._module))
        )
        try:
            self.optimizer = kind(groups, **{**usual, **settings.optimizer_options})
        except (TypeError, ValueError) as error:
            raise RunError(
                f"training.optimizer_options can't be used with {settings.optimizer}: {error}"
            ) from None
        project_gradients(self.optimizer, self._module, settings)
        return self.optimizer

    # Loss
    # ------------------------------------------------------------------------------------------------------

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        return loss_module(self._module, self._setup.processes, spare=self._first_row)

    def _first_row(self) -> AnyBatch:
        setup = self._setup
        return setup.build(setup.rows.sequences([0]), pad_id=setup.rows.pad_id).to(self.args.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """The batch's share of the accumulation window's mean loss per target token.

        Gradients are averaged over the processes, and so is the loss that is logged; so a share is multiplied by their
        number.

        Raises:
            DivergedError: The loss is NaN or Inf; names the step and the rows.
        """
        assert not return_outputs, "evaluation doesn't go through here"
        pending: PendingBatch = inputs["batch"]
        batch, processes = pending.get(), self._setup.processes
        with nullcontext(False) if batch is None else self._setup.lower(batch) as skipped:
            loss: Tensor = model(batch) / num_items_in_batch * processes.count
        if not math.isfinite(value := loss.item()):
            step = self.state.global_step + 1
            raise self._diverged(step, f"the loss is {value}", pending.rows)
        if batch is not None:
            self.clock.count(batch, skipped=skipped)
        return loss

    def measured(self, step: int) -> ValidationReport:
        """The mean loss per target token over the validation rows, and the scores if they are due."""
        setup = self._setup
        with uncompiled(self._module.modules()):  # without gradients they would be compiled again
            loss = mean_loss(
                self._module,
                setup.rows.validation,
                setup.build,
                batch_size=setup.settings.batch_size,
                pad_id=setup.rows.pad_id,
                lower=setup.lower,
                processes=setup.processes,
            )
        scores: Mapping[str, float] = {}
        if setup.scores is not None and scores_are_due(step, setup.settings, setup.plan):
            with as_after_training(self._module, setup.attention):
                scores = setup.scores.of(self._module, setup.processes)
        return ValidationReport(step, setup.plan.steps, loss, self.clock.seconds, dict(scores))

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure, report, and stop if nothing gets better."""
        setup, report = self._setup, self.measured(self.state.global_step)
        setup.report(report)
        setup.best.add(report, self._module)
        metrics = {
            "eval_loss": report.validation_loss,
            **{f"eval_{name}": value for name, value in report.scores.items()},
        }
        self.log(dict(metrics))
        if setup.best.stops:
            self.control.should_training_stop = True
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def scores_are_due(self, step: int) -> bool:
        """Whether this step's validation has scores."""
        return scores_are_due(step, self._setup.settings, self._setup.plan)

    def epochs(self, passes: float) -> float:
        """Passes over the rows, from passes over what `get_train_dataloader` gives."""
        plan = self._setup.plan
        return passes if plan.batches is None else passes * plan.epochs

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: transformers' estimate assumes that every parameter gets a gradient."""
        return 0

    def check_gradient(self, norm: float) -> None:
        """Stop if the step that was just taken had a gradient with NaN or Inf.

        Raises:
            DivergedError: Names the step and its rows.
        """
        if not math.isfinite(norm):
            step = self.state.global_step
            raise self._diverged(step, f"the gradient's norm is {norm}", self._window_rows)

    def _diverged(self, step: int, what: str, rows: Sequence[str]) -> DivergedError:
        shown = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        processes = self._setup.processes
        where = f" in process {processes.rank} of {processes.count}" if processes.count > 1 else ""
        return DivergedError(
            f"step {step}: {what}. Rows of this step{where}: {shown}. A lower training.learning_rate, a longer "
            "training.warmup or float32 usually helps; check these rows too."
        )

    # Checkpoints
    # -----------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        checkpoints = self._setup.checkpoints
        assert checkpoints is not None
        assert self.optimizer is not None and self.lr_scheduler is not None
        checkpoints.flush()
        save_checkpoint(
            checkpoints.directory,
            model=self._module,
            optimizer=self.optimizer,
            lr_scheduler=self.lr_scheduler,
            trainer_state=self.state,
            position=self.clock.position(self.state.global_step),
            identity=checkpoints.identity,
            best=self._setup.best,
            processes=self._setup.processes,
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        assert self._setup.resume_from is not None
        self._setup.resume_from.restore_weights(self._module)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._setup.resume_from is not None:
            assert self.optimizer is not None and self.lr_scheduler is not None
            self._setup.resume_from.restore_optimizer(self._module, self.optimizer, self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._setup.resume_from is not None:
            self._setup.resume_from.restore_random(self._setup.processes, seed=self.args.seed)


class _Reporter(TrainerCallback):
    """Turns the loop's events into our reports."""

    def __init__(self, trainer: AdapterTrainer, report: Callable[[Report], None]) -> None:
        self._trainer = trainer
        self._report = report

    def on_step_begin(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        self._trainer.clock.begin_step()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._trainer.clock.end_step()
        if self._trainer.scores_are_due(state.global_step):
            control.should_evaluate = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Report a step's loss.

        Raises:
            DivergedError: The gradient is NaN or Inf. The step has been taken by now, and nothing was saved
                since.
        """
        logs = logs or {}
        if "loss" in logs:
            self._trainer.check_gradient(logs["grad_norm"])
            clock = self._trainer.clock
            self._report(
                StepReport(
                    step=state.global_step,
                    total_steps=state.max_steps,
                    epoch=self._trainer.epochs(float(state.epoch or 0.0)),
                    loss=logs["loss"],
                    learning_rate=logs["learning_rate"],
                    grad_norm=logs["grad_norm"],
                    tokens=clock.counters.tokens.tokens_in,
                    step_seconds=clock.step_seconds,
                    seconds=clock.seconds,
                )
            )
