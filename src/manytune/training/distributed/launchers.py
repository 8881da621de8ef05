"""What a launcher's environment variables say: which of how many processes this is, or why it can't be one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from manytune.errors import RunError

WAYS = (
    "`manytune train recipe.yaml --processes 2`, `torchrun --nproc-per-node 2 -m manytune train recipe.yaml`"
)
"""How several processes are started; for messages."""

OF_MANYTUNE = "manytune-"
"""How the run ids of processes begin that `--processes` started."""

_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")

# How many processes a launcher started that sets none of torch's variables.
_OTHERS = {
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "MV2_COMM_WORLD_SIZE": "mpirun",
    "SLURM_STEP_NUM_TASKS": "srun",
}

# What accelerate's configuration may ask for and isn't done, with what to do.
_OF_ACCELERATE = {
    "ACCELERATE_USE_DEEPSPEED": (
        "DeepSpeed, which manytune doesn't train with",
        "Choose multi-GPU (DDP) in `accelerate config`",
    ),
    "ACCELERATE_USE_MEGATRON_LM": (
        "Megatron-LM, which manytune doesn't train with",
        "Choose multi-GPU (DDP) in `accelerate config`",
    ),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (
        "a parallelism that divides a model or a sequence, and here each process has the whole model and whole rows",
        "Leave it out; rows that are too long for one device need data.max_length or "
        "training.gradient_checkpointing",
    ),
}

USES_FSDP = "ACCELERATE_USE_FSDP"
"""What accelerate's launcher sets where its configuration asks for FSDP."""

# What such a configuration may ask for and isn't done: its key, the values that are, and what to do.
_OF_FSDP = {
    "FSDP_VERSION": (("2",), "Weights are sharded by FSDP2: set fsdp_version to 2"),
    "FSDP_OFFLOAD_PARAMS": (("false",), "Weights stay on their device: set fsdp_offload_params to false"),
    "FSDP_RESHARD_AFTER_FORWARD": (
        ("true", "full_shard", "1"),
        "Layers are freed after each use: set fsdp_reshard_after_forward to true",
    ),
    "FSDP_AUTO_WRAP_POLICY": (
        ("transformer_based_wrap",),
        "Each layer is a unit: set fsdp_auto_wrap_policy to TRANSFORMER_BASED_WRAP",
    ),
    "FSDP_IGNORED_MODULES": (("",), "All weights are sharded: leave fsdp_ignored_modules out"),
    "FSDP_ACTIVATION_CHECKPOINTING": (
        ("false",),
        "The recipe's training.gradient_checkpointing decides that: set fsdp_activation_checkpointing to false",
    ),
}


@dataclass(frozen=True)
class Launched:
    """One of several processes that a launcher started.

    Attributes:
        rank: Its number, from 0.
        count: How many there are.
        local_rank: Its number on this machine, from 0, which is also its GPU's.
        restarts: How often the launcher started all of them again after a failure.
        by_manytune: Whether `--processes` started them.
        shards: Whether accelerate's configuration asks for FSDP2, as `training.sharding: full` does.
    """

    rank: int
    count: int
    local_rank: int
    restarts: int = 0
    by_manytune: bool = False
    shards: bool = False


def launched(environment: Mapping[str, str] | None = None) -> Launched | None:
    """Read what a launcher set; None for a process that is alone.

    Args:
        environment: The environment variables; None for this process's.

    Raises:
        RunError: A launcher was used, or set up, in a way that isn't supported; says what to use.
    """
    variables = os.environ if environment is None else environment
    _check_accelerate(variables)
    numbers = {name: _number(name, variables[name]) for name in _NUMBERS if name in variables}
    count = numbers.get("WORLD_SIZE", 1)
    if count == 1:
        _check_others(variables)
        return None
    missing = [name for name in _NEEDED if name not in variables]
    if missing:
        raise RunError(
            f"WORLD_SIZE is {count}, so this would be one of {count} processes, and {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Start them by {WAYS}; or unset WORLD_SIZE to train on "
            "one process."
        )
    if not 0 <= numbers["RANK"] < count:
        raise RunError(
            f"expected RANK from 0 to {count - 1}, since WORLD_SIZE is {count}; found {numbers['RANK']}."
        )
    return Launched(
        rank=numbers["RANK"],
        count=count,
        local_rank=numbers["LOCAL_RANK"],
        restarts=_number("TORCHELASTIC_RESTART_COUNT", variables.get("TORCHELASTIC_RESTART_COUNT", "0")),
        by_manytune=variables.get("TORCHELASTIC_RUN_ID", "").startswith(OF_MANYTUNE),
        shards=_is_on(variables, USES_FSDP),
    )


def check_alone(command: str) -> None:
    """Refuse to run a command several times at once.

    Args:
        command: Its name.

    Raises:
        RunError: A launcher started several processes.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if "LOCAL_RANK" in os.environ and count != "1":
        raise RunError(
            f"a launcher started {count} processes, and `manytune {command}` is for one: only `manytune train` runs on "
            "several."
        )


def _check_others(variables: Mapping[str, str]) -> None:
    for name, launcher in _OTHERS.items():
        if name in variables and (count := _number(name, variables[name])) > 1:
            inside = (
                "srun starts one torchrun a machine: `srun --ntasks-per-node 1 torchrun --nnodes ... -m manytune`"
                if launcher == "srun"
                else f"use {WAYS}"
            )
            raise RunError(
                f"{launcher} started {count} processes ({name}), each of which would train the whole recipe in the "
                f"same directory. Instead {inside}."
            )
    if "MASTER_ADDR" in variables and "ACCELERATE_USE_CPU" in variables and "WORLD_SIZE" not in variables:
        raise RunError(
            "accelerate launch was asked for several processes and started one: on CPUs it starts several only by "
            f"mpirun. Use {WAYS}."
        )


def _check_accelerate(variables: Mapping[str, str]) -> None:
    if _is_on(variables, USES_FSDP):
        for name, (known, instead) in _OF_FSDP.items():
            value = variables.get(name, "1" if name == "FSDP_VERSION" else known[0])
            if value.lower() not in known:
                raise RunError(
                    f"accelerate's configuration asks for FSDP, and sets {name} to {value}. {instead}."
                )
    for name, (what, instead) in _OF_ACCELERATE.items():
        if _is_on(variables, name):
            raise RunError(f"accelerate's configuration asks for {what} ({name}). {instead}; or use {WAYS}.")
    for name, key in (
        ("ACCELERATE_MIXED_PRECISION", "training.dtype"),
        ("ACCELERATE_DYNAMO_BACKEND", "training.compile"),
    ):
        value = variables.get(name, "no")
        if value.lower() not in ("no", ""):
            raise RunError(
                f"accelerate's configuration sets {name} to {value}, and the recipe's {key} is what decides that. Set "
                f"it to no in `accelerate config`, and {key} in the recipe."
            )


def _is_on(variables: Mapping[str, str], name: str) -> bool:
    return variables.get(name, "false").lower() in ("true", "1", "yes")


def _number(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise RunError(f"expected a number in the environment variable {name}; found {value!r}.") from None
