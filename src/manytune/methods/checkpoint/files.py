"""Where an adapter's files come from: a directory, or a hub's cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manytune.errors import CheckpointError

TENSORS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"

#: Options that are passed on to a hub.
HUB_OPTIONS = (
    *("revision", "cache_dir", "token", "force_download", "local_files_only", "local_dir", "etag_timeout"),
    *("endpoint", "headers", "user_agent", "library_name", "library_version", "repo_type"),
)


def find_adapter_file(source: str | Path, name: str, *, subfolder: str | None = None, **hub: Any) -> Path:
    """The path of one file of an adapter.

    Args:
        source: A directory, or an id on a hub such as `user/adapter`.
        name: The file's name.
        subfolder: A directory within the source.
        **hub: Options for the hub, see `HUB_OPTIONS`.

    Raises:
        CheckpointError: The directory lacks the file, or the hub has no such adapter or can't be reached.
    """
    directory = Path(source) / (subfolder or "")
    if (directory / name).is_file():
        return directory / name
    if directory.is_dir():
        found = ", ".join(sorted(p.name for p in directory.iterdir())[:12]) or "nothing"
        raise CheckpointError(f"Can't find '{name}' at '{directory}'. The directory holds: {found}.")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(str(source), name, subfolder=subfolder, **hub))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"Can't find '{name}' at '{source}': it is neither a directory here nor an adapter that a hub gave "
            f"({type(error).__name__}). Check the path, or the id and the network."
        ) from None
