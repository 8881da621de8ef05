"""A recipe's training section as transformers' `TrainingArguments`."""

from __future__ import annotations

import math

import torch
from transformers import TrainingArguments, get_scheduler

from manytune.errors import RunError
from manytune.training.distributed.division import passes_of
from manytune.training.distributed.processes import ALONE, Processes
from manytune.training.optimizers import OPTIMIZERS
from manytune.training.recipe import TrainingRecipe
from manytune.training.schedules import SCHEDULES, schedule_options
from manytune.training.training_plan import TrainingPlan


class _OneDevice(TrainingArguments):
    """transformers would spread a batch over every GPU that it sees; a packed batch can't be cut."""

    @property
    def n_gpu(self) -> int:
        """At most one."""
        return min(1, int(super().n_gpu))


class _Placed(_OneDevice):
    """The model is where it trains, as one that is sharded, which isn't to be moved."""

    @property
    def place_model_on_device(self) -> bool:
        """Never."""
        return False


def check_device(settings: TrainingRecipe) -> None:
    """Refuse a device that isn't there.

    Raises:
        RunError: The settings name one that torch doesn't find.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise RunError('training.device is "cuda", and torch finds no CUDA device. Use "auto" or "cpu".')


def training_arguments(
    settings: TrainingRecipe,
    plan: TrainingPlan,
    *,
    validates: bool,
    resumes: bool,
    saves: bool,
    use_cache: bool,
    scratch: str,
    run_name: str | None = None,
    processes: Processes = ALONE,
    sharded: bool = False,
) -> TrainingArguments:
    """What transformers' Trainer is to do.

    Args:
        settings: The recipe's training section.
        plan: The course of the training.
        validates: Whether there are validation rows.
        resumes: Whether an interrupted training goes on.
        saves: Whether there is a place for checkpoints.
        use_cache: The model's own setting, which is restored at the end.
        scratch: A directory that transformers may create; nothing of ours goes there.
        run_name: What reporting integrations call the run.
        processes: Those that train together.
        sharded: Whether the model is sharded over them.

    Raises:
        RunError: The device isn't there, or the schedule can't be had in so many steps.
    """
    check_device(settings)
    check_schedule_length(settings, plan, validates=validates)
    cuda = torch.cuda.is_available()
    recompute = {"use_reentrant": False} if settings.gradient_checkpointing else None
    # By itself transformers takes a process that a launcher started, and that has no GPU, for one that is alone.
    use_cpu = settings.device == "cpu" or (processes.count > 1 and processes.device.type == "cpu")
    return (_Placed if sharded else _OneDevice)(
        output_dir=scratch,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=passes_of(settings.accumulation, processes.count),
        num_train_epochs=plan.epochs,
        max_steps=plan.steps,
        learning_rate=settings.learning_rate,
        optim=OPTIMIZERS[settings.optimizer].name,
        lr_scheduler_type=SCHEDULES[settings.lr_scheduler].name,
        lr_scheduler_kwargs=schedule_options(
            settings.lr_scheduler, settings.lr_scheduler_options, steps=plan.steps
        ),
        warmup_steps=warmup_steps(settings, plan.steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs=recompute,
        use_cache=use_cache,
        seed=settings.seed,
        use_cpu=use_cpu,
        ddp_backend="gloo" if use_cpu and processes.count > 1 else None,
        dataloader_pin_memory=cuda and settings.device != "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validates else "no",
        eval_steps=settings.eval_every or plan.steps_per_epoch,
        eval_on_start=validates and not resumes,
        save_strategy="steps" if saves and settings.checkpoint_every else "no",
        save_steps=settings.checkpoint_every or 1,
        disable_tqdm=True,
        run_name=run_name,
        project="manytune",
        report_to="none",  # the callbacks are passed to the Trainer, each with where it writes to
    )


def warmup_steps(settings: TrainingRecipe, steps: int) -> int:
    """Steps with a rising rate. The first has none at all, so the last step is never one of them."""
    return min(math.ceil(settings.warmup * steps), steps - 1)


def check_schedule_length(settings: TrainingRecipe, plan: TrainingPlan, *, validates: bool) -> None:
    """Refuse a schedule that can't be had in this many steps.

    Raises:
        RunError: Its phases are longer than the training, it follows validations and there are none, or transformers
            refuses its options.
    """
    name, steps = settings.lr_scheduler, plan.steps
    if SCHEDULES[name].by_validation and not validates:
        raise RunError(
            f"training.lr_scheduler {name} follows the validation loss; set validation rows aside (data.validation)."
        )
    options = schedule_options(name, settings.lr_scheduler_options, steps=steps)
    warmup = warmup_steps(settings, steps)
    if (decay := options.get("num_decay_steps", 0)) + warmup > steps:
        raise RunError(
            f"training.lr_scheduler {name}: {warmup} steps of warm-up and {decay} of decay don't fit into {steps}."
        )
    tried = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=settings.learning_rate)
    try:
        get_scheduler(SCHEDULES[name].name, tried, warmup, steps, options)
    except (TypeError, ValueError) as error:
        raise RunError(f"training.lr_scheduler_options can't be used with {name}: {error}") from None
