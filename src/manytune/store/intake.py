"""From wherever an adapter is to a directory with all that a store keeps of it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from manytune.errors import DamagedError, ManytuneError, StoreError
from manytune.methods.checkpoint.files import TENSORS_NAME
from manytune.methods.config import CONFIG_NAME, OptionTypeError, PeftConfig
from manytune.store.adapters import manifest_of, open_adapter
from manytune.store.content_checks import check_safetensors
from manytune.store.contents import CARD_NAME, TOKENIZER_NAMES, refuse_links
from manytune.store.digests import sha256_file
from manytune.store.manifest import MANIFEST_NAME, Description, Manifest
from manytune.store.run_directory import adapter_at

if TYPE_CHECKING:
    from manytune.store.base import Base

#: `gather` as far as it doesn't depend on where: collects an adapter's files in an empty directory.
Filling = Callable[[Path], Manifest]


def gather(source: Path, target: Path, base: Base | None = None, *, base_tokenizer: bool = False) -> Manifest:
    """Copy an adapter's files, check the copies, and make sure that they have a manifest.

    What isn't the adapter's, such as an optimizer's state, is left where it is; see `contents_of`. A chat template of
    its own goes into the manifest.

    Args:
        source: A run, an adapter's directory, or a checkpoint of HF PEFT.
        target: An existing directory that takes the files.
        base: The base that the adapter was trained on. It is checked; a checkpoint of HF PEFT, which doesn't say what
            its base looked like, needs it for its manifest.
        base_tokenizer: Use the base's tokenizer and chat template even if others lie next to the adapter.

    Raises:
        StoreError: There is no adapter, a checkpoint of HF PEFT comes without its base, or with another tokenizer.
        DamagedError: A file is missing, damaged, or a pickle.
        BaseMismatchError: The adapter was trained on another base.
        ConfigError: manytune doesn't implement its options.
    """
    origin = adapter_at(source)
    refuse_links(origin, {CONFIG_NAME, TENSORS_NAME, MANIFEST_NAME, CARD_NAME, *TOKENIZER_NAMES})
    stored = open_adapter(origin, base=base, base_tokenizer=base_tokenizer)
    if stored.manifest is not None:
        names = list(stored.manifest.files)
        refuse_links(origin, names)
    else:
        names = [CONFIG_NAME, TENSORS_NAME]
        if not (origin / TENSORS_NAME).is_file():
            raise DamagedError(
                f"{origin}: expected the adapter's tensors in {TENSORS_NAME}; there is no such file."
            )
    for name in [*names, *([CARD_NAME] if (origin / CARD_NAME).is_file() else [])]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin / name, target / name)
    files = {name: sha256_file(target / name) for name in names}
    config = _config_in(target, origin)
    if stored.manifest is None:
        manifest = manifest_of(_described(origin, config, base), files)
    elif files != dict(stored.manifest.files):
        raise DamagedError(f"{origin}: the adapter was changed while it was being copied. Add it again.")
    else:
        manifest = stored.manifest
    if stored.chat_template is not None and manifest.encoding != "plain":
        kept = {**(manifest.encoding_options or {}), "chat_template": stored.chat_template}
        manifest = dataclasses.replace(manifest, encoding="chat", encoding_options=kept)
    if base is not None:
        manifest = dataclasses.replace(manifest, unservable=_unservable(target, origin, base))
    (target / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _config_in(copy: Path, origin: Path) -> PeftConfig:
    """The options in a copy of an adapter, if they and the tensors can be read; errors name the original."""
    check_safetensors(copy / TENSORS_NAME, origin=origin / TENSORS_NAME)
    try:
        return PeftConfig.from_pretrained(copy)
    except OptionTypeError as error:
        raise DamagedError(f"{origin / CONFIG_NAME}: {error}") from None
    except ManytuneError as error:
        reason = str(error).removeprefix(f"{copy / CONFIG_NAME}: ")
        raise type(error)(f"{origin / CONFIG_NAME}: {reason}") from None
    except Exception as error:  # options may hold values of any kind
        raise DamagedError(f"{origin / CONFIG_NAME}: {error}") from error


def _unservable(copy: Path, origin: Path, base: Base) -> str | None:
    """Why a server can't run a copy of an adapter; None if it can. Errors name the original."""
    from manytune.store.servability import why_not_served

    try:
        return why_not_served(copy, base.model, encodes=base.is_encoder)
    except ManytuneError:
        raise
    except Exception as error:  # an option's value may be of a kind that only its method finds out
        raise DamagedError(
            f"{origin / CONFIG_NAME}: the options can't be read ({type(error).__name__}: {str(error)[:200]}). "
            "Get the adapter again from its source."
        ) from error


def _described(origin: Path, config: PeftConfig, base: Base | None) -> Description:
    """What is known of a checkpoint of HF PEFT."""
    from manytune.methods.registry import method_of

    if base is None:
        named = config.base_model_name_or_path or "NAME"
        raise StoreError(
            f"{origin}: a checkpoint of HF PEFT doesn't say what its base looked like. Pass --base {named} "
            "(base= in Python), so that the adapter never runs on another one unnoticed."
        )
    return Description(method=method_of(config).name, base=base.name, fingerprint=base.fingerprint)
