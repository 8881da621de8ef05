"""Filling an adapter's parameters from a checkpoint's tensors of the same names."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from manytune.errors import CheckpointError
from manytune.sharded import fill, is_sharded


class ShapeMismatchError(CheckpointError, RuntimeError):
    """A tensor of a checkpoint has another shape than the model's."""


def fill_state(
    adapter_name: str,
    mine: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    *,
    optional: Collection[str] = (),
    ignore_mismatched_sizes: bool = False,
) -> tuple[list[str], list[str]]:
    """Fill parameters from tensors of the same names; those on the meta device come to life.

    Args:
        adapter_name: For the error message.
        mine: The parameters; filled in place.
        tensors: What a checkpoint brings.
        optional: Names in `mine` that needn't be there.
        ignore_mismatched_sizes: Leave out tensors of another shape, rather than raise.

    Returns:
        Names in `mine` that got nothing, and names in `tensors` that nothing took.

    Raises:
        ShapeMismatchError: A shape differs; nothing has been filled then.
    """
    misfits = [key for key, tensor in tensors.items() if key in mine and tensor.shape != mine[key].shape]
    if misfits and not ignore_mismatched_sizes:
        lines = (
            f"  size mismatch for {key}: the checkpoint has {tuple(tensors[key].shape)}, "
            f"the model {tuple(mine[key].shape)}"
            for key in misfits
        )
        raise ShapeMismatchError(
            f"The checkpoint doesn't fit adapter '{adapter_name}'. Was it trained on another base, or with other "
            "options?\n" + "\n".join(lines)
        )
    for key, tensor in tensors.items():
        if key in mine and key not in misfits:
            _fill(mine[key], tensor)
    missing = [k for k in mine if (k not in tensors or k in misfits) and k not in optional]
    return missing, sorted(set(tensors) - set(mine))


def _fill(parameter: Tensor, value: Tensor) -> None:
    if parameter.device.type == "meta":
        filled = nn.Parameter(value.to(parameter.dtype, copy=True), requires_grad=parameter.requires_grad)
        torch.utils.swap_tensors(parameter, filled)
    else:
        fill(parameter.data, value)


def taken(adapter_name: str, state_dict: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors out of a state dict of the whole model, under other names.

    Args:
        adapter_name: For the error message.
        state_dict: The model's tensors.
        names: For each tensor's name to give, its name there.

    Raises:
        CheckpointError: One isn't there, or is sharded.
    """
    missing = [name for name in names.values() if name not in state_dict]
    if missing:
        present = ", ".join(list(state_dict)[:3]) or "nothing"
        raise CheckpointError(
            f"state_dict lacks {len(missing)} of the {len(names)} tensors of adapter '{adapter_name}', such as "
            f"{missing[0]}; it has {present}. Expected that of the model with adapters itself, as "
            "accelerator.get_state_dict(model) gives it on the main process: without the `module.` of a wrapper such "
            "as DistributedDataParallel."
        )
    found = {key: state_dict[name] for key, name in names.items()}
    if any(map(is_sharded, found.values())):
        raise CheckpointError(
            f"state_dict has parts of the tensors of adapter '{adapter_name}': its weights are sharded (FSDP2). Gather "
            "them with accelerator.get_state_dict(model), or leave state_dict out and call this on all processes."
        )
    return found
