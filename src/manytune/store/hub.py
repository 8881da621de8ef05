"""Adapters to and from a hub, through huggingface_hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manytune.errors import StoreError
from manytune.methods.checkpoint.format import TENSORS_NAME
from manytune.methods.config import CONFIG_NAME
from manytune.store.adapters import open_adapter
from manytune.store.contents import CARD_NAME, TOKENIZER_NAMES, contents_of, refuse_links
from manytune.store.manifest import MANIFEST_NAME


def pull_adapter(repository: str, *, revision: str | None = None) -> Path:
    """The directory in the hub's cache that holds an adapter's files, which are fetched if they aren't there.

    Args:
        repository: Its id, such as `user/adapter`.
        revision: A branch, a tag or a commit; None for the main branch.

    Raises:
        StoreError: There is no such adapter, or the hub can't be reached.
    """
    import huggingface_hub

    wanted = [CONFIG_NAME, TENSORS_NAME, MANIFEST_NAME, CARD_NAME, *sorted(TOKENIZER_NAMES)]
    with _as_store_errors(repository):
        found = Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=wanted))
    if not (found / CONFIG_NAME).is_file():
        raise StoreError(f"{repository}: expected an adapter with an {CONFIG_NAME}; the hub has none there.")
    return found


def push_adapter(directory: str | Path, repository: str, *, private: bool = False) -> str:
    """Upload an adapter's own files, its card and its manifest; the repository is made if there is none.

    Args:
        directory: The adapter's directory, checked before anything is sent.
        repository: Its id, such as `user/adapter`.
        private: Whether a repository that is made is private.

    Returns:
        The address of the commit.

    Raises:
        StoreError: There is no adapter, or the hub refuses it or can't be reached.
        DamagedError: It is damaged.
    """
    import huggingface_hub

    stored = open_adapter(directory)
    refuse_links(stored.path, contents_of(stored.path).files)
    with _as_store_errors(repository):
        api = huggingface_hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        return str(
            api.upload_folder(
                repo_id=repository,
                folder_path=str(stored.path),
                allow_patterns=list(contents_of(stored.path).files),
                commit_message="Upload an adapter with manytune",
            )
        )


@contextmanager
def _as_store_errors(repository: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise StoreError(
            f"{repository}: the hub didn't do it ({type(error).__name__}: {first}). Check the id, the network and your "
            "token (`hf auth login`)."
        ) from error
