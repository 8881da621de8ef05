from __future__ import annotations

import pytest

from manytune.errors import RunError
from manytune.training.distributed.launchers import Launched, check_alone, launched

TORCH = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
#: What `accelerate launch` sets for fsdp_version 2 and its other defaults.
FSDP = {
    **TORCH,
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}


def test_a_process_without_a_launcher_is_alone() -> None:
    assert launched({}) is None
    assert launched({**TORCH, "RANK": "0", "WORLD_SIZE": "1"}) is None
    # A batch script of Slurm's has the job's variables, and isn't one of its tasks.
    assert launched({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None
    assert launched({"SLURM_STEP_NUM_TASKS": "1"}) is None


def test_torchrun_says_which_process_it_is() -> None:
    assert launched(TORCH) == Launched(rank=1, count=2, local_rank=1)
    # torchrun inside of srun, and accelerate's defaults
    more = {
        "SLURM_STEP_NUM_TASKS": "2",
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
    }
    again = {"TORCHELASTIC_RESTART_COUNT": "2", "TORCHELASTIC_RUN_ID": "manytune-1"}
    assert launched({**TORCH, **more, **again}) == Launched(1, 2, 1, restarts=2, by_manytune=True)


def test_accelerates_fsdp2_is_that_of_recipes() -> None:
    assert launched(FSDP) == Launched(rank=1, count=2, local_rank=1, shards=True)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"OMPI_COMM_WORLD_SIZE": "2"},
            r"mpirun started 2 processes .*Instead use `manytune train recipe.yaml --proc",
        ),
        ({"PMI_SIZE": "8"}, r"mpirun started 8 processes"),
        (
            {"SLURM_STEP_NUM_TASKS": "4"},
            r"srun started 4 processes .*one torchrun a machine: `srun --ntasks-per-node",
        ),
        ({"WORLD_SIZE": "2", "RANK": "0"}, r"LOCAL_RANK and MASTER_ADDR and MASTER_PORT are missing"),
        ({**TORCH, "RANK": "2"}, r"expected RANK from 0 to 1, since WORLD_SIZE is 2; found 2"),
        (
            {**TORCH, "WORLD_SIZE": "two"},
            r"expected a number in the environment variable WORLD_SIZE; found 'two'",
        ),
        (
            {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"},
            r"asked for several processes and started one",
        ),
        ({**TORCH, "ACCELERATE_USE_DEEPSPEED": "true"}, r"DeepSpeed, which manytune doesn't train with"),
        (FSDP | {"FSDP_VERSION": "1"}, r"sets FSDP_VERSION to 1\. .* set fsdp_version to 2"),
        ({**TORCH, "ACCELERATE_USE_FSDP": "true"}, r"FSDP_VERSION to 1"),
        (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}, r"set fsdp_offload_params to false"),
        (FSDP | {"FSDP_RESHARD_AFTER_FORWARD": "false"}, r"set fsdp_reshard_after_forward to true"),
        (FSDP | {"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, r"to TRANSFORMER_BASED_WRAP"),
        (FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, r"training\.gradient_checkpointing decides"),
        (FSDP | {"FSDP_IGNORED_MODULES": "lm_head"}, r"leave fsdp_ignored_modules out"),
        ({**TORCH, "ACCELERATE_USE_MEGATRON_LM": "true"}, r"Megatron-LM"),
        (
            {**TORCH, "ACCELERATE_USE_PARALLELISM_CONFIG": "true"},
            r"divides a model or a sequence.*data\.max_length",
        ),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, r"ACCELERATE_MIXED_PRECISION to bf16, .* training\.dtype"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, r"training\.compile"),
    ],
)
def test_a_launcher_that_is_not_supported_is_refused_with_what_to_use(
    variables: dict[str, str], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        launched(variables)


def test_other_commands_run_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    check_alone("evaluate")
    for name, value in TORCH.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=r"started 2 processes, and `manytune evaluate` is for one"):
        check_alone("evaluate")
