"""Adapters for HF PEFT and vLLM. For llama.cpp see `export_gguf.py`, for plain models `combining.py`."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from manytune.atomic import atomic_directory
from manytune.errors import ConfigError, StoreError
from manytune.methods.checkpoint.format import TENSORS_NAME, write_adapter
from manytune.methods.config import CONFIG_NAME, PeftConfig
from manytune.methods.registry import method_of
from manytune.store.adapters import open_adapter
from manytune.store.contents import CARD_NAME, TEMPLATE_NAME, contents_of, refuse_links
from manytune.store.labels import NAME, file_name
from manytune.store.tensors_in_memory import TensorsInMemory

#: Values that vLLM takes for --max-lora-rank.
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_ARGUMENTS = "vllm-arguments.txt"


def export_peft(directory: str | Path, target: Path) -> None:
    """Write an adapter as HF PEFT's `save_pretrained` does; a combination becomes two, `weights` and `prompt`.

    A chat template of its own lies next to it then, as Trainer and TRL leave it.

    Args:
        directory: The adapter's directory.
        target: The new directory, which must not exist.

    Raises:
        StoreError: HF PEFT has no such method; the adapter is damaged; or the target exists.
    """
    stored = open_adapter(directory)
    refuse_links(stored.path, contents_of(stored.path).files)
    config = PeftConfig.from_pretrained(stored.path)
    parts = method_of(config).tuner.separated(config, TensorsInMemory(stored.path / TENSORS_NAME))
    for own in [part for part, _ in parts.values()] or [config]:
        if not method_of(own).in_peft:
            raise StoreError(
                f"{stored.path}: HF PEFT has no method {own.peft_type}. Merge the adapter into its base, if it goes "
                "into the weights, or run it with manytune."
            )
    with atomic_directory(target) as temporary:
        for name, (own, tensors) in parts.items():
            write_adapter(temporary / name, own, tensors)
        for file in () if parts else (CONFIG_NAME, TENSORS_NAME, CARD_NAME):
            if file != CARD_NAME or (stored.path / file).is_file():
                shutil.copyfile(stored.path / file, temporary / file)
        if stored.chat_template is not None:
            (temporary / TEMPLATE_NAME).write_text(stored.chat_template, encoding="utf-8")


def export_vllm(adapters: Mapping[str, str | Path], target: Path) -> str:
    """Write adapters for vLLM, and the arguments that serve them: `xargs vllm serve BASE < vllm-arguments.txt`.

    Args:
        adapters: Their directories, by the names that requests will use.
        target: The new directory, which must not exist. It gets a directory for each adapter, `user%2Fadapter` for
            the name `user/adapter`, and the arguments in `vllm-arguments.txt`.

    Returns:
        The arguments, quoted as a shell and xargs read them.

    Raises:
        StoreError: vLLM can't run an adapter, or takes its name for something else; one is damaged; or the target
            exists.
    """
    for name in adapters:
        # vLLM takes {…} for JSON, and what is before the first "=" for the name.
        odd = not name or "=" in name or name.startswith(("{", "-")) or "\n" in name
        if odd or ("/" in name and not NAME.fullmatch(name)):
            raise StoreError(
                f"{name!r} can't be an adapter's name in vLLM's arguments: expected one line without '=', the first "
                "character no '{' or '-', and a '/' only as in user/adapter. Give it another name."
            )
    if "\n" in str(target):
        raise StoreError(
            f"{str(target)!r}: a path with a line break can't be in arguments. Name another directory."
        )
    ranks = []
    for path in adapters.values():
        config, tensors = PeftConfig.from_pretrained(path), TensorsInMemory(Path(path) / TENSORS_NAME)
        try:
            ranks.append(method_of(config).tuner.vllm_rank(config, tensors))
        except ConfigError as error:
            raise StoreError(f"{path}: {error}") from None
    rank = next((known for known in _VLLM_RANKS if known >= max(ranks)), None)
    if rank is None:
        raise StoreError(f"vLLM runs ranks up to {_VLLM_RANKS[-1]}; found {max(ranks)}.")
    modules = [f"{name}={(target / file_name(name)).absolute()}" for name in adapters]
    arguments = shlex.join(["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", *modules])
    with atomic_directory(target) as temporary:
        for name, path in adapters.items():
            export_peft(path, temporary / file_name(name))
        (temporary / _ARGUMENTS).write_text(arguments + "\n", encoding="utf-8")
    return arguments
