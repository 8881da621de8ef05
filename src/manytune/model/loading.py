"""From an adapter's file into the adapter: what is left over on either side is never passed over."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manytune.errors import CheckpointError, ConfigError, PeftWarning
from manytune.methods.checkpoint.files import HUB_OPTIONS
from manytune.methods.checkpoint.format import LoadResult, read_tensors, set_state
from manytune.methods.tuners.base import Tuner
from manytune.methods.tuners.walk import every_parameter

_OWN = {"subfolder", "ignore_mismatched_sizes", "strict", "use_safetensors"}
#: HF PEFT's options that place a base whose weights are offloaded again. Here a base stays where it is.
_PLACING = {"device_map", "max_memory", "offload_folder", "offload_dir", "offload_index", "offload_buffers"}
#: Options of earlier versions, and what has become of them.
_GONE = {
    "proxies": "huggingface_hub takes proxies from the environment (HTTPS_PROXY)",
    "resume_download": "downloads are always resumed",
    "local_dir_use_symlinks": "huggingface_hub makes no links any more",
    "adapters": "it belongs to X-LoRA, which isn't implemented",
}
_SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some options that a hub takes."""
    old = {"token": options["use_auth_token"]} if options.get("use_auth_token") is not None else {}
    return {**old, **{key: options[key] for key in HUB_OPTIONS if key in options}}


def check_options(model: nn.Module, options: Mapping[str, Any]) -> None:
    """Refuse options for loading that don't mean anything, before anything is attached.

    Args:
        model: The base.
        options: Those of `PeftModel.load_adapter` that go to its `**kwargs`.

    Warns:
        PeftWarning: One of them would place the base, which stays where it is.

    Raises:
        TypeError: An option isn't known.
        CheckpointError: `use_safetensors` is False.
        ConfigError: `device_map` is neither a device, nor a map to devices, nor a way to spread a model.
    """
    known = _OWN | _PLACING | {*HUB_OPTIONS, "use_auth_token"}
    for name in sorted(set(options) - known):
        reason = f": {_GONE[name]}." if name in _GONE else f".{_nearest(name, known)}"
        raise TypeError(f"Unknown options for loading an adapter: {name!r}{reason}")
    if options.get("use_safetensors") is False:
        raise CheckpointError(
            "use_safetensors=False: manytune reads safetensors only, since a pickle can run code."
        )
    given = {name: options[name] for name in sorted(_PLACING) if options.get(name) is not None}
    places = _places(given.pop("device_map", None))
    if not given and not places:
        return  # without a look at the model, which takes longer with every adapter
    where = {parameter.device for parameter in every_parameter(model) if not parameter.is_meta}
    if places and not places <= {*where, *(torch.device(device.type) for device in where)}:
        given["device_map"] = options["device_map"]
    if given:
        named = ", ".join(f"{name}={value!r}" for name, value in given.items())
        present = ", ".join(sorted(map(str, where))) or "no device yet"
        warnings.warn(
            f"{named}: an adapter goes where its layers of the base are, on {present}, and the base stays there. To "
            "place the base, pass these options to its own from_pretrained.",
            PeftWarning,
            stacklevel=3,
        )


def _places(device_map: Any) -> set[torch.device]:
    """The devices that a map names; none for a way to spread a model over those there are, or for a disk."""
    values = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    wanted = [value for value in values if value is not None and value not in (*_SPREADING, "disk")]
    try:
        return {torch.device(value) for value in wanted}
    except (RuntimeError, TypeError):
        raise ConfigError(
            f"device_map={device_map!r}: expected a device, a mapping to devices, or one of {', '.join(_SPREADING)}."
        ) from None


def _nearest(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(sorted(known))}."


def load_into(
    tuner: Tuner,
    model_id: str | Path,
    adapter_name: str,
    *,
    torch_device: str | torch.device | None = None,
    low_cpu_mem_usage: bool = False,
    key_mapping: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> LoadResult:
    """Fill an adapter that was added before from its file; options as for `PeftModel.load_adapter`.

    Warns:
        PeftWarning: The file lacks tensors that the adapter has.

    Raises:
        CheckpointError: A file is missing or damaged; a tensor in it fits nothing in the model; or, with `strict`,
            it lacks tensors that the adapter has.
    """
    device = str(torch_device or _device_of(tuner.model))
    tensors = read_tensors(model_id, device=device, subfolder=kwargs.get("subfolder"), **hub_options(kwargs))
    result = set_state(
        tuner,
        adapter_name,
        tensors,
        ignore_mismatched_sizes=kwargs.get("ignore_mismatched_sizes", False),
        key_mapping=key_mapping,
    )
    if result.unexpected_keys:
        raise CheckpointError(
            f"{model_id}: {len(result.unexpected_keys)} tensors fit nothing in the model: "
            f"{_some(result.unexpected_keys)}. Was the adapter trained on another base, or its adapter_config.json "
            "changed?"
        )
    if result.missing_keys and low_cpu_mem_usage:
        raise CheckpointError(
            f"{model_id}: {len(result.missing_keys)} tensors of the adapter are missing: "
            f"{_some(result.missing_keys)}. With low_cpu_mem_usage=True nothing else gives them values."
        )
    if result.missing_keys and kwargs.get("strict", False):
        raise CheckpointError(
            f"{model_id}: {len(result.missing_keys)} tensors of the adapter are missing: "
            f"{_some(result.missing_keys)}. Used as it is, the adapter would be partly untrained. Save it again."
        )
    if result.missing_keys:
        warnings.warn(
            f"Found missing adapter keys while loading the checkpoint: {result.missing_keys}. "
            "They keep their initial values.",
            PeftWarning,
            stacklevel=4,
        )
    note = tuner.peft_config[adapter_name].loading_note
    if note is not None:
        warnings.warn(f"{model_id}: {note}", PeftWarning, stacklevel=4)
    return result


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _device_of(model: nn.Module) -> torch.device:
    parameter: Tensor | None = next((p for p in model.parameters() if not p.is_meta), None)
    return torch.device("cpu") if parameter is None else parameter.device
