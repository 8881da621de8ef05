"""What identifies a base model, so that an adapter never runs on another one unnoticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from manytune.errors import DamagedError

if TYPE_CHECKING:
    import torch
    from torch import nn
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
    """SHA-256 hashes, in hexadecimal digits, that together identify a base.

    A base that is packed as it is loaded has the weights of the checkpoint, whatever device packs them. One that was
    stored packed has only the packed ones; what it and its origin have in common is `unpacked`.

    Attributes:
        config: Of the architecture's settings.
        weights: Of up to 256 evenly spaced values of every weight, rounded to bfloat16.
        tokenizer: Of the vocabulary, the merges, the special tokens and the chat template; of a base that reads images,
            of its image processor's settings.
        unpacked: As `weights`, of those only that packing leaves as they are: all but linear layers'. None in
            manifests of earlier releases.
        packing: What linear layers are packed as, such as `nf4`; None if they aren't.
        stored_packed: Whether the checkpoint has them packed, rather than whoever loads it packing them.
    """

    config: str
    weights: str
    tokenizer: str
    unpacked: str | None = None
    packing: str | None = None
    stored_packed: bool = False

    def differences(self, other: Fingerprint) -> tuple[str, ...]:
        """The parts that differ: any of "config", "weights", "tokenizer".

        How weights are packed is no difference, as it is the same base: see `packing_note`.
        """
        parts = ("config", "weights", "tokenizer")
        differing = [part for part in parts if getattr(self, part) != getattr(other, part)]
        if (
            self._only_unpacked_compare(other)
            and self.unpacked is not None
            and self.unpacked == other.unpacked
        ):
            differing = [part for part in differing if part != "weights"]
        elif "weights" not in differing and None not in (self.unpacked, other.unpacked):
            # One base has one hash of each kind: where these disagree, one of the two was altered.
            differing += ["weights"] if self.unpacked != other.unpacked else []
        return tuple(part for part in parts if part in differing)

    def packing_note(self, other: Fingerprint) -> str | None:
        """What to know where an adapter that was trained on this base runs on `other`, which is packed in another way.

        Returns:
            A clause; None if they are packed in the same way.
        """
        unequal = self._only_unpacked_compare(other)
        if self.packing == other.packing and not unequal:
            return None
        note = (
            f"it was trained on this base {_packed(self.packing)}, and here the base is {_packed(other.packing)}, so "
            "its answers differ by what packing rounds"
        )
        compared = "only weights outside of linear layers could be compared; they are the same"
        return f"{note} ({compared})" if unequal else note

    def _only_unpacked_compare(self, other: Fingerprint) -> bool:
        """Whether one has hashes of packed weights and the other of those that were packed."""
        return self.stored_packed != other.stored_packed and self.weights != other.weights

    @property
    def identity(self) -> dict[str, Any]:
        """What decides whether something continues on the same base: all that `weights` doesn't cover already."""
        return {part: value for part, value in self.to_dict().items() if part != "unpacked"}

    def to_dict(self) -> dict[str, Any]:
        """As it is written into a manifest."""
        return {part: value for part, value in asdict(self).items() if value}

    @classmethod
    def from_dict(cls, data: object) -> Fingerprint:
        """Read what `to_dict` wrote.

        Raises:
            DamagedError: A part is missing, unknown or of the wrong kind.
        """
        needed = {"config", "tokenizer", "weights"}
        if isinstance(data, dict) and needed <= set(data) <= {part.name for part in fields(cls)}:
            values = {part: value for part, value in data.items() if part != "stored_packed"}
            stored_packed = data.get("stored_packed", False)
            if all(isinstance(value, str) for value in values.values()) and isinstance(stored_packed, bool):
                return cls(**values, stored_packed=stored_packed)
        expected = ", ".join(sorted(needed))
        raise DamagedError(f"a base fingerprint has the texts {expected}; found {data!r}.")

    def __str__(self) -> str:
        packing = f", packed as {self.packing}" if self.packing else ""
        return f"config {self.config[:12]}, weights {self.weights[:12]}, tokenizer {self.tokenizer[:12]}{packing}"


def _packed(packing: str | None) -> str:
    return f"packed as {packing}" if packing else "unpacked"


def fingerprint(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | Mapping[str, Any],
    *,
    packing: str | None = None,
    stored_packed: bool = False,
) -> Fingerprint:
    """Take the fingerprint of a base model, in a fraction of a second.

    Sampled values are rounded to bfloat16, so loading one float32 checkpoint as float32 or as bfloat16
    gives the same fingerprint; float16 rounds twice and may not. The price of that tolerance: two bases
    whose sampled values are equal in bfloat16 have the same fingerprint.

    Args:
        model: The base, with or without adapters attached: a wrapped module counts as the layer in it.
            Adapters that were merged into the weights do change the fingerprint.
        tokenizer: The base's tokenizer, or its image processor's settings.
        packing: What linear layers are packed as, or will be; None if they aren't.
        stored_packed: Whether the checkpoint has them packed.
    """
    unwrap: Any = getattr(model, "get_base_model", None)
    base: nn.Module = unwrap() if unwrap else model
    weights, unpacked = _weights_hashes(base)
    return Fingerprint(_config_hash(base), weights, _reader_hash(tokenizer), unpacked, packing, stored_packed)


def _config_hash(model: nn.Module) -> str:
    config: Any = model.config
    settings = {key: value for key, value in config.to_dict().items() if key not in _VOLATILE}
    return hashlib.sha256(_json(settings).encode()).hexdigest()


def _weights_hashes(model: nn.Module) -> tuple[str, str]:
    """Of all weights, and of those outside of linear layers."""
    import torch

    from manytune.methods.tuners.quantized_layers import readable

    every, unpacked = hashlib.sha256(), hashlib.sha256()
    for name, weight, packable in sorted(_base_weights(model, ""), key=lambda found: found[0]):
        flat = readable(weight.detach()).reshape(-1)
        step = max(1, flat.numel() // _SAMPLES)
        sample = flat[::step][:_SAMPLES].to(device="cpu", dtype=torch.bfloat16)
        for hashed in (every,) if packable else (every, unpacked):
            hashed.update(f"{name}{tuple(weight.shape)}".encode())
            hashed.update(sample.view(torch.int16).numpy().tobytes())
    return every.hexdigest(), unpacked.hexdigest()


def _base_weights(module: nn.Module, prefix: str) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """The base's parameters under their own names, whatever wraps their modules, and whether packing concerns them.

    A wrapper keeps the module that it replaced as `base_layer` (adapters) or `original_module` (modules
    trained in full), and everything else in it belongs to the adapter. A tied parameter is listed under
    each of its names.
    """
    from torch import nn

    children = dict(module.named_children())
    for kept in ("base_layer", "original_module"):
        if kept in children:
            yield from _base_weights(children[kept], prefix)
            return
    linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's, of transformers
    for name, parameter in module.named_parameters(recurse=False):
        yield f"{prefix}{name}", parameter, linear and name == "weight"
    for name, child in children.items():
        yield from _base_weights(child, f"{prefix}{name}.")


def _reader_hash(reader: PreTrainedTokenizerBase | Mapping[str, Any]) -> str:
    if isinstance(reader, Mapping):
        return hashlib.sha256(_json(dict(reader)).encode()).hexdigest()
    return _tokenizer_hash(reader)


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
