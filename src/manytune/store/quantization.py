"""Bases whose linear layers are packed into fewer bits: as they are loaded, or by whoever saved them.

    nf4     4-bit NormalFloat with double quantization, by bitsandbytes (QLoRA: Dettmers et al., arXiv 2305.14314)
    int8    8 bits, one factor for each output, by torchao; products are in the base's dtype

Packing is transformers', through its own configurations.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any, Literal

from manytune.errors import ConfigError, StoreError
from manytune.extras import install_command

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

Packing = Literal["nf4", "int8"]

_LIBRARIES = {"nf4": "bitsandbytes", "int8": "torchao"}


def packing_of_checkpoint(config: PretrainedConfig) -> str | None:
    """What a checkpoint's weights are packed as: `nf4`, or a library's name with a form; None if they aren't packed."""
    found: Any = getattr(config.get_text_config(decoder=True), "quantization_config", None)
    found = getattr(config, "quantization_config", None) or found
    if found is None:
        return None
    options: dict[str, Any] = found if isinstance(found, dict) else found.to_dict()
    library = options.get("quant_method") or "bitsandbytes"
    library = str(getattr(library, "value", library))
    if library == "bitsandbytes":
        if options.get("load_in_4bit"):
            return str(options.get("bnb_4bit_quant_type") or "fp4")
        return "bitsandbytes-int8"
    if library == "torchao":
        default = (options.get("quant_type") or {}).get("default") or {}
        form = default.get("_type") if isinstance(default, dict) else None
        return "int8" if form == "Int8WeightOnlyConfig" else f"torchao-{form}"
    return library


def quantization_config(name: str, stored: str | None, packing: Packing, compute: torch.dtype) -> Any:
    """The configuration with which transformers packs a base as it loads it.

    Args:
        name: What the base is called, for messages.
        stored: What the checkpoint is packed as; None if it isn't.
        packing: What it is to be packed as.
        compute: In which its products are computed.

    Raises:
        StoreError: It is packed in another way already, or the library that packs isn't installed.
    """
    if stored is not None:
        raise StoreError(
            f"base {name!r}: its weights are stored as {stored}, so they can't be packed as {packing}. Leave `weights` "
            "out, or name the base that was packed."
        )
    library = _LIBRARIES[packing]
    if importlib.util.find_spec(library) is None:
        raise StoreError(
            f"base {name!r}: packing weights as {packing} needs {library}. Run: {install_command('quant')}"
        )
    if packing == "nf4":
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def require_trainable(model: PreTrainedModel) -> None:
    """Refuse a packed base next to which no adapter trains.

    Raises:
        ConfigError: Its library passes no gradients, or isn't one whose layers manytune knows.
    """
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return
    library = quantizer.quantization_config.quant_method
    library = str(getattr(library, "value", library))
    known = library in _LIBRARIES.values()
    if known and quantizer.is_trainable:
        return
    why = "in a form that passes no gradients" if known else "whose layers manytune doesn't train next to"
    raise ConfigError(
        f"the base's weights are quantized by {library}, {why}. Name the base that was quantized, and pack it with "
        "weights: nf4 or weights: int8."
    )


def say_once() -> None:
    """Let bitsandbytes say once, rather than at each product, that its 8-bit products round inputs to float16."""
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    if not any(isinstance(found, _Once) for found in logger.filters):
        logger.addFilter(_Once())


class _Once(logging.Filter):
    """Passes each message the first time."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        known = message in self._seen
        self._seen.add(message)
        return not known
