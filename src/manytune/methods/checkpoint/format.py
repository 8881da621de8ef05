"""The one file that knows HF PEFT's checkpoint keys.

    adapter_config.json          the configuration
    adapter_model.safetensors    base_model.model.<path>.<tensor>, without the adapter's name

A tensor's name is that of the parameter in memory with the adapter's name taken out: `…q_proj.lora_A.weight`
for `…q_proj.lora_A.default.weight`, `…head.weight` for `…head.modules_to_save.default.weight`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from manytune.atomic import atomic_write
from manytune.errors import CheckpointError
from manytune.methods.checkpoint.files import PICKLE_NAME as PICKLE_NAME
from manytune.methods.checkpoint.files import TENSORS_NAME as TENSORS_NAME
from manytune.methods.checkpoint.files import find_adapter_file
from manytune.methods.checkpoint.renaming import present_names
from manytune.methods.config import PeftConfig
from manytune.methods.tuners.base import Tuner
from manytune.methods.tuners.embeddings import load_tables
from manytune.sharded import whole_for_files

_CONVERSION = (
    "pickle files can run code when they are read. Convert it once, where you trust the file: "
    "safetensors.torch.save_file(torch.load('adapter_model.bin', weights_only=True), 'adapter_model.safetensors')."
)


@dataclass(frozen=True)
class LoadResult:
    """What loading an adapter's tensors left over.

    Attributes:
        missing_keys: Names in the model that the checkpoint didn't fill.
        unexpected_keys: Names in the checkpoint that fit nothing in the model.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


def get_state(tuner: Tuner, adapter_name: str, *, prefix: str | None = None) -> dict[str, Tensor]:
    """An adapter's tensors, named as in a checkpoint, or after another prefix. They share the model's memory.

    Those that FSDP2 shards are gathered into the CPU's memory; all processes must take part.
    """
    prefix = tuner.file_prefix if prefix is None else prefix
    return whole_for_files(
        {f"{prefix}{key}": tensor.detach() for key, tensor in tuner.state(adapter_name).items()}
    )


def set_state(
    tuner: Tuner,
    adapter_name: str,
    tensors: Mapping[str, Tensor],
    *,
    prefix: str | None = None,
    ignore_mismatched_sizes: bool = False,
    key_mapping: Mapping[str, str] | None = None,
) -> LoadResult:
    """Fill an adapter from tensors named as in a checkpoint, or after another prefix.

    Args:
        tuner: What attaches the adapter.
        adapter_name: The adapter.
        tensors: By name.
        prefix: What their names begin with.
        ignore_mismatched_sizes: Leave out tensors of another shape, rather than raise.
        key_mapping: How names of an older version of the base are to be read; see `renaming.py`.

    Raises:
        ShapeMismatchError: A tensor has another shape than the model's.
    """
    prefix = tuner.file_prefix if prefix is None else prefix
    own = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    foreign = sorted(key for key in tensors if not key.startswith(prefix))
    mine = tuner.state(adapter_name)
    names = present_names(tuner.model, own, mine, key_mapping)
    own = {names[key]: tensor for key, tensor in own.items()}
    if own.keys() - mine.keys():
        own = load_tables(tuner, adapter_name, own, mine, ignore_mismatched_sizes=ignore_mismatched_sizes)
    missing, unexpected = tuner.load_state(adapter_name, own, ignore_mismatched_sizes=ignore_mismatched_sizes)
    return LoadResult(
        [f"{prefix}{tuner.memory_name(adapter_name, key)}" for key in missing],
        [*foreign, *(f"{prefix}{key}" for key in unexpected)],
    )


def write_adapter(directory: Path, config: PeftConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write an adapter's tensors and, marked as for inference, its configuration.

    The tensors come first and the configuration last, so that a directory with a configuration has its
    tensors.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ready = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    atomic_write(
        directory / TENSORS_NAME, safetensors.torch.save(_unshared(ready), metadata={"format": "pt"})
    )
    options = json.loads(config.to_json()) | {"inference_mode": True}
    atomic_write(directory / "adapter_config.json", json.dumps(options, indent=2, sort_keys=True))


def read_tensors(
    source: str | Path, *, device: str = "cpu", subfolder: str | None = None, **hub: Any
) -> dict[str, Tensor]:
    """Read an adapter's tensors from a directory or a hub.

    Raises:
        CheckpointError: There is no such file, it isn't safetensors, or it is damaged.
    """
    directory = Path(source) / (subfolder or "")
    if (directory / PICKLE_NAME).is_file() and not (directory / TENSORS_NAME).is_file():
        raise CheckpointError(f"{directory / PICKLE_NAME}: manytune reads safetensors only; {_CONVERSION}")
    path = find_adapter_file(source, TENSORS_NAME, subfolder=subfolder, **hub)
    with path.open("rb") as file:
        start = file.read(16)
    # A zip archive is what torch.save writes now, 0x80 opens a bare pickle: name them, rather than "header
    # too large".
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:9] != b"{"):
        raise CheckpointError(f"{path}: expected safetensors, found a pickle under that name; {_CONVERSION}")
    try:
        return safetensors.torch.load_file(path, device=device)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}). Copy or save it again."
        ) from None


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Safetensors refuses tensors that share memory, as tied parameters do; write each of them out."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        start = tensor.untyped_storage().data_ptr()
        result[name] = (
            tensor.clone()
            if start in seen or tensor.numel() * tensor.element_size() != (tensor.untyped_storage().nbytes())
            else tensor
        )
        seen.add(start)
    return result
