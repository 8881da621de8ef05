"""From a model with adapters to HF PEFT's files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, distributed

from manytune.errors import AdapterError, CheckpointError
from manytune.methods.checkpoint.card import write_card
from manytune.methods.checkpoint.format import write_adapter
from manytune.model.adapted import AdaptedModel
from manytune.model.state_dicts import get_peft_model_state_dict, give_parts
from manytune.sharded import has_shards


def save_adapters(
    model: AdaptedModel,
    save_directory: str | Path,
    *,
    safe_serialization: bool,
    selected_adapters: Sequence[str] | None,
    save_embedding_layers: bool | Literal["auto"],
    initial: str | Path | None,
    is_main_process: bool,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write adapters; see `PeftModel.save_pretrained`, whose `path_initial_model_...` is `initial` here."""
    gathers = state_dict is None and has_shards(model)
    if not is_main_process and not gathers:
        return
    writes = is_main_process and not (gathers and distributed.get_rank())
    directory = Path(save_directory)
    if directory.is_file():
        raise CheckpointError(f"Provided path ({directory}) should be a directory, not a file.")
    if not safe_serialization:
        raise CheckpointError(
            "safe_serialization=False would write a pickle; manytune writes safetensors only."
        )
    names = list(model.peft_config if selected_adapters is None else selected_adapters)
    unknown = [name for name in names if name not in model.peft_config]
    if unknown:
        raise AdapterError(f"Can't save {unknown}: not loaded. Loaded adapters: {list(model.peft_config)}.")
    for name in names:
        if not writes:
            give_parts(model, name, save_embedding_layers)
            continue
        config = model.peft_config[name]
        tensors = get_peft_model_state_dict(
            model, state_dict, adapter_name=name, save_embedding_layers=save_embedding_layers
        )
        if initial is not None:
            config, tensors = model.tuner.converted(config, tensors, initial)
        target = directory if name == "default" else directory / name
        write_adapter(target, config, tensors)
    if names and writes:
        write_card(directory, model.get_base_model(), model.peft_config[names[0]])


def push_adapters(
    model: AdaptedModel,
    repo_id: str,
    *,
    commit_message: str | None,
    private: bool | None,
    token: bool | str | None,
    revision: str | None,
    create_pr: bool,
    **saving: Any,
) -> Any:
    """Upload adapters to a hub; see `PeftModel.push_to_hub`."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    target = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory, **saving)
        return api.upload_folder(
            repo_id=target,
            folder_path=directory,
            commit_message=commit_message or "Upload adapter",
            revision=revision,
            create_pr=create_pr,
        )
