"""transformers' Trainer in one of two processes, on models of either library: DistributedDataParallel and FSDP2."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from tests.integration.trainer_runs import STEPS, adapted, losses, trainer_of
from torch import distributed
from transformers import Trainer

import manytune


class OnCpu(Trainer):
    """A Trainer whose accelerate shards on a CPU, too: it turns FSDP on for accelerators alone."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        for shared in (state._shared_state, PartialState._shared_state):
            shared["distributed_type"] = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
        self.is_fsdp_enabled = True


def trainer(library: Any, mode: str, directory: Path) -> Trainer:
    AcceleratorState._reset_state(reset_partial_state=True)
    kind, options = (Trainer, {}) if mode == "ddp" else (OnCpu, {"fsdp": True})
    return trainer_of(adapted(library, tied=False), directory, kind, **options)


def trained(library: Any, mode: str, directory: Path) -> dict[str, Any]:
    """Train; manytune's model once more from the middle."""
    whole = trainer(library, mode, directory)
    whole.train()
    found: dict[str, Any] = {"losses": losses(whole), "best": whole.evaluate()["eval_loss"]}
    distributed.barrier()
    last = directory / f"checkpoint-{STEPS}"
    found["files"] = sorted(str(path.relative_to(last)) for path in last.rglob("*") if path.is_file())
    found["units"] = units(whole)
    distributed.barrier()
    if distributed.get_rank() == 0:
        shutil.move(last, directory / "last")
    distributed.barrier()
    if library is peft:
        return found
    resumed = trainer(library, mode, directory)
    resumed.train(resume_from_checkpoint=True)
    return found | {"resumed": losses(resumed)}


def units(trainer: Trainer) -> int:
    """How many of the model's modules FSDP2 gathers one at a time."""
    from torch.distributed.fsdp import FSDPModule

    return sum(isinstance(module, FSDPModule) for module in trainer.model_wrapped.modules())


LIBRARIES: dict[str, Any] = {"peft": peft, "manytune": manytune}
