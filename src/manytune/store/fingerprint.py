"""What identifies a base model, so that an adapter never runs on another one unnoticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from manytune.errors import DamagedError
from manytune.methods.tuners.quantized_layers import readable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLES = 256  # values sampled from each weight
# What differs between two loads of one model: where it came from, which release read it, how it will be run.
_VOLATILE = {
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "dtype",
    "output_attentions",
    "output_hidden_states",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


@dataclass(frozen=True)
class Fingerprint:
    """Three SHA-256 hashes, in hexadecimal digits, that together identify a base.

    Attributes:
        config: Of the architecture's settings.
        weights: Of up to 256 evenly spaced values of every weight, rounded to bfloat16.
        tokenizer: Of the vocabulary, the merges, the special tokens and the chat template.
    """

    config: str
    weights: str
    tokenizer: str

    def differences(self, other: Fingerprint) -> tuple[str, ...]:
        """The parts that differ: any of "config", "weights", "tokenizer"."""
        mine, others = asdict(self), asdict(other)
        return tuple(part for part in mine if mine[part] != others[part])

    def to_dict(self) -> dict[str, str]:
        """As it is written into a manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Fingerprint:
        """Read what `to_dict` wrote.

        Raises:
            DamagedError: A part is missing, unknown or not text.
        """
        parts = set(cls.__dataclass_fields__)
        if isinstance(data, dict) and set(data) == parts and all(isinstance(v, str) for v in data.values()):
            return cls(**data)
        expected = ", ".join(sorted(parts))
        raise DamagedError(f"a base fingerprint has the texts {expected}; found {data!r}.")

    def __str__(self) -> str:
        return f"config {self.config[:12]}, weights {self.weights[:12]}, tokenizer {self.tokenizer[:12]}"


def fingerprint(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> Fingerprint:
    """Take the fingerprint of a base model, in a fraction of a second.

    Sampled values are rounded to bfloat16, so loading one float32 checkpoint as float32 or as bfloat16
    gives the same fingerprint; float16 rounds twice and may not. The price of that tolerance: two bases
    whose sampled values are equal in bfloat16 have the same fingerprint.

    Args:
        model: The base, with or without adapters attached: a wrapped module counts as the layer in it.
            Adapters that were merged into the weights do change the fingerprint.
        tokenizer: The base's tokenizer.
    """
    unwrap: Any = getattr(model, "get_base_model", None)
    base: torch.nn.Module = unwrap() if unwrap else model
    return Fingerprint(_config_hash(base), _weights_hash(base), _tokenizer_hash(tokenizer))


def _config_hash(model: torch.nn.Module) -> str:
    config: Any = model.config
    settings = {key: value for key, value in config.to_dict().items() if key not in _VOLATILE}
    return hashlib.sha256(_json(settings).encode()).hexdigest()


def _weights_hash(model: torch.nn.Module) -> str:
    hashed = hashlib.sha256()
    for name, weight in sorted(_base_weights(model, "")):
        flat = readable(weight.detach()).reshape(-1)
        step = max(1, flat.numel() // _SAMPLES)
        sample = flat[::step][:_SAMPLES].to(device="cpu", dtype=torch.bfloat16)
        hashed.update(f"{name}{tuple(weight.shape)}".encode())
        hashed.update(sample.view(torch.int16).numpy().tobytes())
    return hashed.hexdigest()


def _base_weights(module: torch.nn.Module, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The base's parameters under their own names, whatever wraps their modules.

    A wrapper keeps the module that it replaced as `base_layer` (adapters) or `original_module` (modules
    trained in full), and everything else in it belongs to the adapter. A tied parameter is listed under
    each of its names.
    """
    children = dict(module.named_children())
    for kept in ("base_layer", "original_module"):
        if kept in children:
            yield from _base_weights(children[kept], prefix)
            return
    for name, parameter in module.named_parameters(recurse=False):
        yield f"{prefix}{name}", parameter
    for name, child in children.items():
        yield from _base_weights(child, f"{prefix}{name}.")


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # The text begins with the truncation and padding that the last call happened to use; the rules follow.
        rules = backend.to_str().partition('"added_tokens":')[2]
    else:
        rules = _json(sorted(tokenizer.get_vocab().items()))
    # A padding token is often chosen at run time, and it never reaches the model unmasked.
    special = {
        name: str(token) for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"
    }
    template = getattr(tokenizer, "chat_template", None)
    return hashlib.sha256(f"{rules}{_json([special, template])}".encode()).hexdigest()


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
