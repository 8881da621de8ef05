"""A base as its adapters are checked against it, without its weights: the other engine has them in its own memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from manytune.atomic import atomic_write
from manytune.caches import cache_directory
from manytune.errors import DamagedError, ServeError
from manytune.store.base import Base, load_base, load_config, load_tokenizer
from manytune.store.base_source import resolve
from manytune.store.fingerprint import Fingerprint


@dataclasses.dataclass(frozen=True)
class EmptyBase:
    """A base whose model has no values.

    Attributes:
        base: Its model is on the meta device.
        location: What the other engine loads: a directory, or a hub id.
    """

    base: Base
    location: str


def empty_base(spec: str, *, notify: Callable[[str], None]) -> EmptyBase:
    """Read all of a base but its weights.

    What identifies a base includes a sample of its weights, so they are loaded once, on the CPU; the fingerprint is
    kept in the cache directory for as long as no file of the base changes.

    Args:
        spec: A hub id, a directory, a `.gguf` file, or "embedded".
        notify: Receives a line before something slow begins.

    Raises:
        StoreError: It can't be loaded.
        ServeError: It writes no text, or is an encoder-decoder.
    """
    from transformers import AutoModelForCausalLM

    source = resolve(spec, notify)
    config = load_config(spec, notify=notify)
    known = _known(source.location)
    found = None if known is None else _read(known)
    if found is None:
        notify(f"Reading {spec} once, to know it again ...")
        loaded = load_base(spec, notify=notify)
        if loaded.is_encoder or loaded.is_encoder_decoder:
            raise ServeError(
                f"{spec}: vLLM is given decoders that write text; this base is an "
                f"{'encoder' if loaded.is_encoder else 'encoder-decoder'}. Serve it with --engine manytune."
            )
        found = loaded.fingerprint
        if known is not None:
            known.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(known, json.dumps(found.to_dict()))
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    base = Base(model.eval(), load_tokenizer(spec, notify=notify), source.name, found)
    return EmptyBase(base, source.location)


def _known(location: str) -> Path | None:
    """The file that keeps the fingerprint of the base's present files; None if they can't be found."""
    directory = Path(location)
    if not directory.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(location, "config.json")
        if not isinstance(cached, str):
            return None
        directory = Path(cached).parent
    state = [str(directory.resolve())]
    for file in sorted(directory.iterdir()):
        status = file.stat()
        state.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
    name = hashlib.sha256("\n".join(state).encode()).hexdigest()[:32]
    return cache_directory() / "fingerprints" / f"{name}.json"


def _read(file: Path) -> Fingerprint | None:
    try:
        return Fingerprint.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, DamagedError):
        return None
