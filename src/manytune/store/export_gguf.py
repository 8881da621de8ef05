"""A LoRA adapter as llama.cpp reads it: `llama-cli -m base.gguf --lora adapter.gguf`.

llama.cpp adds scale · alpha / r · B A to the weight of the same name, with one alpha for the file and r from the shape
of B. It keeps the query and key projections of Llama models in another order of rows than transformers: transformers
rotates the first half of each head with the second, llama.cpp each even row with the next odd one. B's rows follow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from manytune.atomic import atomic_file
from manytune.errors import StoreError
from manytune.methods.checkpoint.format import read_tensors
from manytune.methods.config import PeftConfig
from manytune.methods.lora.config import LoraConfig
from manytune.methods.tuners.targets import first_match
from manytune.store.adapters import open_adapter
from manytune.store.exports import require_plain_lora

#: By transformers' `model_type`: llama.cpp's name of the architecture, and whether it reorders queries and keys.
ARCHITECTURES: Mapping[str, tuple[str, bool]] = {
    "llama": ("LLAMA", True),
    "mistral": ("LLAMA", True),
    "qwen2": ("QWEN2", False),
    "qwen3": ("QWEN3", False),
    "gemma": ("GEMMA", False),
    "gemma2": ("GEMMA2", False),
}
_PREFIX = "base_model.model."


def export_gguf(directory: str | Path, target: Path, model_config: Any) -> None:
    """Write a LoRA adapter as a GGUF file; float16 stays float16, all else becomes float32.

    Args:
        directory: The adapter's directory.
        target: The file; replaced if it is there.
        model_config: The configuration of its base, for the architecture and its heads.

    Raises:
        StoreError: The adapter is none that llama.cpp can run, or the base's architecture isn't known here.
    """
    import gguf

    stored = open_adapter(directory)
    config = require_plain_lora(stored.path, PeftConfig.from_pretrained(stored.path), "llama.cpp")
    if model_config.model_type not in ARCHITECTURES:
        raise StoreError(
            f"{stored.path}: the base is a {model_config.model_type!r} model; adapters of {', '.join(ARCHITECTURES)} "
            "can be written for llama.cpp. Merge the adapter, and convert the merged model with llama.cpp's own script."
        )
    architecture, reordered = ARCHITECTURES[model_config.model_type]
    kind = gguf.MODEL_ARCH[architecture]
    names = gguf.get_tensor_name_map(kind, model_config.num_hidden_layers)
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[kind])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(config.lora_alpha))
    for path, (a, b) in _factors(stored.path).items():
        name = names.get_name(f"{path}.weight", try_suffixes=(".weight",))
        if name is None:
            raise StoreError(f"{stored.path}: llama.cpp's {architecture} models have nothing like {path}.")
        b = b * _scale(config, path, b.shape[1])
        if reordered and path.endswith(("q_proj", "k_proj")):
            b = llama_cpp_order(b, _heads(model_config, path))
        writer.add_tensor(f"{name}.lora_a", _array(a))
        writer.add_tensor(f"{name}.lora_b", _array(b))
    with atomic_file(target) as temporary:
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def llama_cpp_order(rows: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection, (heads · 2 · half, ...), as llama.cpp orders them: (heads · half · 2, ...)."""
    return rows.view(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _factors(directory: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A, (r, in), and B, (out, r), by the path of their module."""
    tensors = read_tensors(directory)
    return {
        key.removeprefix(_PREFIX).removesuffix(".lora_A.weight"): (
            a,
            tensors[key.replace(".lora_A.", ".lora_B.")],
        )
        for key, a in tensors.items()
        if key.endswith(".lora_A.weight")
    }


def _scale(config: LoraConfig, path: str, rank: int) -> float:
    """What B is multiplied by, so that the file's one alpha, divided by r, gives this layer's scaling: mostly 1."""
    key = first_match(path, config.alpha_pattern or {})
    alpha = config.lora_alpha if key is None else config.alpha_pattern[key]
    scaling = alpha / (math.sqrt(rank) if config.use_rslora else rank)
    return scaling * rank / config.lora_alpha


def _heads(model_config: Any, path: str) -> int:
    queries: int = model_config.num_attention_heads
    return (
        queries if path.endswith("q_proj") else getattr(model_config, "num_key_value_heads", None) or queries
    )


def _array(tensor: Tensor) -> numpy.ndarray[Any, Any]:
    plain = tensor if tensor.dtype == torch.float16 else tensor.float()
    array: numpy.ndarray[Any, Any] = plain.contiguous().numpy()
    return array
