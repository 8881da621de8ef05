"""What a training cost and how it went."""

from __future__ import annotations

from dataclasses import dataclass

from manytune.model.accounting import ExpertCounts
from manytune.store.run_log import StepReport, ValidationReport
from manytune.training.loop.best_step import KeptStep
from manytune.training.loop.counters import Counters
from manytune.training.speed.frozen_layers import CacheSize
from manytune.training.speed.layout_choice import LayoutChoice


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a training cost and how it went.

    Attributes:
        steps: Optimizer steps done in all.
        kept: The step whose weights the model has.
        counters: What was computed in all.
        step_seconds: Time spent in training steps.
        seconds: Time in all: compiling, steps, validation and checkpoints; interruptions not counted.
        compile_seconds: What `training.compile` took before the first step; None without it.
        peak_memory: The most memory in use at once, in bytes: of the GPU if one was used, else of the
            process since it started. Of several processes, that of the one with most.
        trainable_parameters: Numbers that were trained.
        all_parameters: Numbers of the model with what was attached to it.
        experts: How much of a mixture's experts was adapted; None for a model without any.
        required_flops: Floating-point operations that the steps can't do without; None if the model's can't be
            counted.
        matmul_flops_per_second: The machine's FLOP/s in matrix products of the model's shapes, times the number of
            processes; None if it wasn't measured.
        layout: How the batches were laid out, and why not as asked if so.
        kernels: What the C++ kernels computed, or why there are none; None where they have no part: on a GPU, in
            bfloat16.
        cache: What `training.cache_frozen` kept; None without it.
        step_reports: One for each step of this process; those before a `--resume` aren't in it.
        validation_reports: The same for validations; the first is the model before training.
    """

    steps: int
    kept: KeptStep
    counters: Counters
    step_seconds: float
    seconds: float
    compile_seconds: float | None
    peak_memory: int
    trainable_parameters: int
    all_parameters: int
    experts: ExpertCounts | None
    required_flops: int | None
    matmul_flops_per_second: float | None
    layout: LayoutChoice
    kernels: str | None
    cache: CacheSize | None
    step_reports: tuple[StepReport, ...]
    validation_reports: tuple[ValidationReport, ...]

    @property
    def tokens(self) -> int:
        """Input tokens read in all, pad tokens not counted."""
        return self.counters.tokens.tokens_in

    @property
    def tokens_per_second(self) -> float:
        """Training throughput."""
        return self.tokens / self.step_seconds if self.step_seconds else 0.0

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B): required FLOPs over possible ones.

        What was possible in the steps' time is what this machine's own matrix products do, as measured, and not the
        peak of a data sheet.
        """
        if self.required_flops is None or self.matmul_flops_per_second is None or not self.step_seconds:
            return None
        return self.required_flops / (self.step_seconds * self.matmul_flops_per_second)

    @property
    def validation_loss(self) -> float | None:
        """The validation loss of the step that is kept; None if there were no validation rows."""
        return self.kept.validation_loss
