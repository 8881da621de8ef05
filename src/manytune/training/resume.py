"""The state of an interrupted run: everything that the remaining steps depend on, and nothing else.

A checkpoint is a directory `step-00000120`, written whole or not at all:

    weights.safetensors     the trainable parameters, by name
    optimizer.safetensors   the optimizer's moments, as `<parameter>/<state>`
    best.safetensors        the trainable parameters of the best step so far, with `keep: best`
    random.safetensors      the generators' states that are tensors (torch on the CPU and on each GPU, of each process)
    state.json              the optimizer's settings, lr_scheduler, other generators, position, the best step's scores
    trainer_state.json      transformers' own step counters and log
    digests.json            the SHA-256 of each of these files

Nothing is put back from a checkpoint in which a bit differs from what was written: the one before it is used.
There is no pickle in it. With the same data, recipe, releases and numbers of processes and threads, a run continued
from a checkpoint ends with the same bits as one that was never interrupted. Nothing but the generators' states is of a
process, so a run goes on with any number of them, whether or not their weights are sharded: tensors are whole.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerState

from manytune.atomic import atomic_directory, clean_leftovers
from manytune.errors import DamagedError, RunError
from manytune.sharded import fill, placed_like, reshard, whole_for_files
from manytune.store.digests import sha256_file
from manytune.training.distributed.generators import generator_states, restore_generators
from manytune.training.distributed.processes import ALONE, Processes
from manytune.training.loop.best_step import BestStep
from manytune.training.loop.counters import Counters

KEPT = 2  # the last two, so that one is whole even if the disk loses the other
_NAME = re.compile(r"step-(\d{8})")
_FORMAT = 5
_BEST = "best.safetensors"
_DIGESTS = "digests.json"
_LONGEST = 1 << 30  # bytes of a JSON file in a checkpoint
_FILES = (
    "optimizer.safetensors",
    "random.safetensors",
    "state.json",
    "trainer_state.json",
    "weights.safetensors",
)
_SEPARATOR = "/"  # never part of a parameter's name


@dataclass(frozen=True)
class Position:
    """How far a run had come.

    Attributes:
        step: Optimizer steps done.
        counters: What was computed so far.
        step_seconds: Time spent in training steps so far.
        seconds: Time spent in all so far.
    """

    step: int
    counters: Counters
    step_seconds: float
    seconds: float


def checkpoints_in(directory: Path) -> list[Path]:
    """The complete checkpoints in a directory, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))


def save_checkpoint(
    directory: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    trainer_state: TrainerState,
    position: Position,
    identity: Mapping[str, object],
    best: BestStep | None = None,
    processes: Processes = ALONE,
) -> Path:
    """Write a checkpoint after a completed optimizer step, and remove all but the last two.

    Each process calls it, and the first one writes.

    Args:
        directory: Where the run keeps its checkpoints.
        model: Its trainable parameters are saved.
        optimizer: Over those parameters.
        lr_scheduler: The optimizer's.
        trainer_state: transformers' counters.
        position: How far the run has come.
        identity: What a resumed run must agree with; JSON.
        best: The best step so far.
        processes: Those that train together.
    """
    target = directory / f"step-{position.step:08d}"
    generators = generator_states(processes)
    reshard(model)
    names = _parameter_names(model, optimizer)
    weights = whole_for_files(_trainable(model), keep=processes.is_first)
    moments, counts = _optimizer_state(optimizer, names, keep=processes.is_first)
    if not processes.is_first:
        return target
    state = {
        "format": _FORMAT,
        "position": asdict(position),
        "identity": dict(identity),
        "optimizer": {"names": names, "groups": optimizer.state_dict()["param_groups"], "counts": counts},
        "lr_scheduler": lr_scheduler.state_dict(),
        "random": _host_generators(),
        "best": None if best is None else best.state(),
    }
    with atomic_directory(target, existing="replace") as temporary:
        save_file(_in_cpu_memory(weights), temporary / "weights.safetensors")
        save_file(moments, temporary / "optimizer.safetensors")
        save_file(generators, temporary / "random.safetensors")
        if best is not None and best.weights:
            save_file(best.weights, temporary / _BEST)
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
        trainer_state.save_to_json(str(temporary / "trainer_state.json"))
        digests = {file.name: sha256_file(file) for file in sorted(temporary.iterdir())}
        (temporary / _DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
    for old in checkpoints_in(directory)[:-KEPT]:
        shutil.rmtree(old)
    return target


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been found and read, ready to be put back part by part."""

    path: Path
    position: Position
    identity: dict[str, object]
    _state: dict[str, Any]

    def restore_weights(self, model: nn.Module) -> None:
        """Put the trainable parameters back.

        Raises:
            RunError: The model's trainable parameters aren't those of the checkpoint.
        """
        saved = self._tensors("weights.safetensors")
        reshard(model)
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if {n: p.shape for n, p in parameters.items()} != {n: t.shape for n, t in saved.items()}:
            odd = sorted(set(saved) ^ set(parameters)) or ["a shape"]
            raise RunError(
                f"{self.path}: the checkpoint has {len(saved)} trainable parameters and the model "
                f"{len(parameters)}; they differ in {odd[0]}. Train again with --overwrite."
            )
        for name, parameter in parameters.items():
            fill(parameter, saved[name])

    def restore_optimizer(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        """Put the optimizer's moments and settings and the lr_scheduler's state back."""
        reshard(model)
        recorded = self._state["optimizer"]
        if _parameter_names(model, optimizer) != recorded["names"]:
            raise RunError(f"{self.path}: the optimizer's parameters aren't those of the checkpoint.")
        moments: dict[int, dict[str, Any]] = {}
        index_of = {name: index for index, name in enumerate(recorded["names"])}
        parameters = dict(model.named_parameters())
        for key, value in {**self._tensors("optimizer.safetensors"), **recorded["counts"]}.items():
            name, _, kind = key.rpartition(_SEPARATOR)
            is_tensor = isinstance(value, Tensor)
            placed = placed_like(parameters[name], value) if is_tensor else value
            moments.setdefault(index_of[name], {})[kind] = placed
        optimizer.load_state_dict({"state": moments, "param_groups": recorded["groups"]})
        lr_scheduler.load_state_dict(self._state["lr_scheduler"])

    def restore_best(self, best: BestStep) -> None:
        """Put the best step so far back."""
        if self._state["best"] is not None:
            best.load(self._state["best"], self._tensors(_BEST) if (self.path / _BEST).is_file() else {})

    def restore_random(self, processes: Processes = ALONE, *, seed: int = 0) -> None:
        """Put every random number generator back.

        Args:
            processes: Those that train together now, perhaps others than before.
            seed: With the step, decides what a process draws that wasn't there before.
        """
        host = self._state["random"]
        version, numbers, gauss = host["python"]
        random.setstate((version, tuple(numbers), gauss))
        legacy = dict(host["numpy"])
        legacy["state"] = {**legacy["state"], "key": np.array(legacy["state"]["key"], dtype=np.uint32)}
        np.random.set_state(legacy)
        restore_generators(self._tensors("random.safetensors"), processes, seed=seed, step=self.position.step)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        try:
            return load_file(self.path / name)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self.path / name}: the checkpoint is damaged: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Where a training keeps its states, and the one that it continues from.

    Attributes:
        directory: Where they go.
        identity: What a resumed run must agree with; JSON.
        resume_from: The state to continue from; None starts at the first step.
        flush: Called before a state is written, so that what was said of its steps is on the disk, too.
    """

    directory: Path
    identity: Mapping[str, object] = field(default_factory=dict)
    resume_from: Checkpoint | None = None
    flush: Callable[[], None] = lambda: None


def latest_checkpoint(directory: Path, notify: Callable[[str], None] | None = None) -> Checkpoint | None:
    """Read the newest whole checkpoint of a run; None if the run has none.

    What a killed process was writing is removed first. A checkpoint in which a file is missing, or differs from what
    was written by a single bit, is passed over.

    Args:
        directory: Where the run keeps its checkpoints.
        notify: Receives a line about each checkpoint that is passed over.

    Raises:
        RunError: The newest was written by another release of manytune, or there are some and all are damaged.
    """
    clean_leftovers(directory)
    damaged = []
    for path in reversed(checkpoints_in(directory)):
        try:
            return read_checkpoint(path)
        except DamagedError as error:
            damaged.append(str(error))
            if notify is not None:
                notify(f"{error}; it is passed over")
    if damaged:
        raise RunError(f"{damaged[0]}, and there is no whole one. Train again with --overwrite.")
    return None


def digest_of_checkpoint(path: Path) -> str | None:
    """The SHA-256 of the digests of all files of a checkpoint; None if it isn't there."""
    try:
        return sha256_file(path / _DIGESTS)
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        DamagedError: A file is missing, or differs from what was written.
        RunError: It was written by another release of manytune.
    """
    state = _json_in(path / "state.json")
    if not isinstance(state, dict):
        raise _damaged(path / "state.json", f"expected an object, found {type(state).__name__}")
    if isinstance(state.get("format"), int) and state["format"] != _FORMAT and not (path / _DIGESTS).exists():
        raise RunError(
            f"{path}: the checkpoint has format {state['format']} and this manytune reads {_FORMAT}. "
            "Continue with the release that wrote it, or train again with --overwrite."
        )
    digests = _json_in(path / _DIGESTS)
    if not isinstance(digests, dict) or not set(_FILES) <= set(digests):
        raise _damaged(path / _DIGESTS, f"expected the SHA-256 of {', '.join(_FILES)}")
    for name in (*_FILES, *({_BEST} & set(digests))):
        if not (path / name).is_file():
            raise _damaged(path / name, "it is missing")
        if sha256_file(path / name) != digests[name]:
            raise _damaged(path / name, "its SHA-256 isn't the one that was written with it")
    if state.get("format") != _FORMAT:
        raise RunError(
            f"{path}: the checkpoint has format {state.get('format')!r} and this manytune reads {_FORMAT}. "
            "Continue with the release that wrote it, or train again with --overwrite."
        )
    position = state["position"]
    position = Position(**{**position, "counters": Counters.from_dict(position["counters"])})
    return Checkpoint(path, position, state["identity"], state)


def _json_in(file: Path) -> Any:
    try:
        if file.stat().st_size > _LONGEST:
            raise _damaged(file, f"expected at most {_LONGEST:,} bytes")
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file, str(error)) from error


def _damaged(file: Path, why: str) -> DamagedError:
    return DamagedError(f"{file}: the checkpoint is damaged: {why}")


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def _in_cpu_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of the optimizer's parameters, in the order in which its state numbers them."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer_state(
    optimizer: torch.optim.Optimizer, names: list[str], *, keep: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state as `<parameter>/<state>`: what is a tensor, and the rest, such as counts of steps.

    It is read from the parameters, since bitsandbytes nests it in `state_dict`. If not `keep`, this process only gives
    its parts of sharded ones to others.
    """
    tensors: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    for name, parameter in zip(names, parameters, strict=True):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}{_SEPARATOR}{key}"] = value.detach()
            else:
                others[f"{name}{_SEPARATOR}{key}"] = value
    gathered = whole_for_files(tensors, keep=keep)
    # Copies of their own: 8-bit states of all parameters share one table of values.
    return {name: value.clone() for name, value in _in_cpu_memory(gathered).items()}, others


def _host_generators() -> dict[str, Any]:
    numpy: Any = np.random.get_state(legacy=False)
    numpy = {**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].tolist()}}
    return {"python": random.getstate(), "numpy": numpy}
