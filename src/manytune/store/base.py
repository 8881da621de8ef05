"""The base model, its tokenizer, and what identifies it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from manytune.errors import StoreError
from manytune.free_memory import require_memory
from manytune.images import ImageReading
from manytune.methods.tuners.quantized_layers import keep_differentiable
from manytune.model.image_models import reads_images
from manytune.store.base_source import Source, from_pretrained, hub_origin, resolve
from manytune.store.fingerprint import Fingerprint, fingerprint
from manytune.store.image_base import load_image_reading, no_tokenizer, settings_of
from manytune.store.quantization import Packing, packing_of_checkpoint, quantization_config, say_once

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Base:
    """A loaded base model.

    Attributes:
        model: In evaluation mode, nothing attached.
        tokenizer: With a padding token; where the checkpoint has none, it is the end token. Of a base that reads images
            it knows a single token.
        name: The spec that it was loaded from, which loads it again.
        fingerprint: What identifies this base, taken before anything was attached.
        images: How it reads images; None for a base that reads text.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: Fingerprint
    images: ImageReading | None = None

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether prompts go to an encoder and answers come from a decoder, as in T5 and BART."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def is_encoder(self) -> bool:
        """Whether it gives vectors and writes no text, as BERT, ViT and models derived from them."""
        return _encodes(self.model.config)

    @property
    def positions(self) -> int | None:
        """The most tokens of a prompt and its answer; None without a limit, and for an encoder-decoder."""
        found = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return found if isinstance(found, int) and not self.is_encoder_decoder else None

    @property
    def answer_positions(self) -> int | None:
        """The most tokens of a prompt and its answer, or of an encoder-decoder's answer alone; None without a limit."""
        found = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return found if isinstance(found, int) else None


def load_base(
    spec: str,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    weights: Packing | None = None,
    notify: Callable[[str], None] | None = None,
) -> Base:
    """Load a causal language model, an encoder-decoder, or an encoder of text or images without its head.

    With it comes its tokenizer, or its image processor.

    A GGUF file is converted to float32 safetensors once, into the cache directory (`MANYTUNE_CACHE`, or
    `~/.cache/manytune`); later loads read the conversion.

    Args:
        spec: A hub id, a directory, a `.gguf` file, or "embedded".
        dtype: The weights' type, such as `torch.bfloat16` or "bfloat16"; None keeps what the checkpoint
            stores.
        device: Where to put the model; None is the CPU.
        weights: Pack the linear layers as they are loaded: "nf4" or "int8", see `quantization.py`. None keeps them as
            the checkpoint has them, which may be packed.
        notify: Receives a line before something slow begins; None writes it to stderr.

    Raises:
        StoreError: The spec names nothing that can be loaded; says what was tried and what to install.
        ShortMemoryError: Hardly any memory is free.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    source = resolve(spec, notify)
    # Transformers loads weights in threads, and Python waits without end for one that begins without any memory.
    require_memory(0, f"loading the base {source.name}")
    config = from_pretrained(AutoConfig, source)
    auto_class = (
        AutoModelForSeq2SeqLM
        if getattr(config, "is_encoder_decoder", False)
        else AutoModel
        if _encodes(config)
        else AutoModelForCausalLM
    )
    images = load_image_reading(source, config) if reads_images(config) else None
    tokenizer = _load_tokenizer(source) if images is None else no_tokenizer()
    # What the model is given of a text or an image is part of what identifies the base.
    reader = tokenizer if images is None else settings_of(images)
    stored = packing_of_checkpoint(config)
    options: dict[str, Any] = {"dtype": _torch_dtype(dtype)}
    taken: Fingerprint | None = None
    if stored is not None or weights is not None:
        options["device_map"] = {"": torch.device(device or "cpu")}  # it isn't moved once it is packed
    if weights is not None and weights != stored:
        compute = options["dtype"] if options["dtype"] != "auto" else (config.dtype or torch.float32)
        options["quantization_config"] = quantization_config(source.name, stored, weights, compute)
        # That of the weights before they are packed: one that every device and release finds again.
        taken = fingerprint(_load_model(auto_class, source), reader, packing=weights)
    model = _load_model(auto_class, source, **options)
    _name_origin(model, source)
    if getattr(model, "hf_quantizer", None) is not None:
        keep_differentiable(model)
        say_once()
    elif device is not None:
        model.to(device)
    model.eval()
    if taken is None:
        taken = fingerprint(model, reader, packing=stored, stored_packed=stored is not None)
    return Base(model, tokenizer, source.name, taken, images)


def _load_model(auto_class: Any, source: Source, **options: Any) -> Any:
    model, loading = from_pretrained(
        auto_class, source, output_loading_info=True, use_safetensors=True, **options
    )
    if any(name.startswith("pooler.") for name in loading["missing_keys"]):
        model.pooler = None  # the checkpoint has none: its values would be random, others at every load
    return model


def _name_origin(model: PreTrainedModel, source: Source) -> None:
    """Let adapters name a base from a hub as the hub does: a path in a cache is found on no other machine."""
    origin = hub_origin(source)
    if origin is not None:
        model.name_or_path, revision = origin
        if revision is not None:
            model.config._commit_hash = revision


def load_tokenizer(spec: str, *, notify: Callable[[str], None] | None = None) -> PreTrainedTokenizerBase:
    """Load only the tokenizer of a base; the arguments and errors are those of `load_base`."""
    return _load_tokenizer(resolve(spec, notify))


def is_encoder_decoder(spec: str, *, notify: Callable[[str], None] | None = None) -> bool:
    """Whether a base is an encoder-decoder, from its configuration; arguments and errors as in `load_base`."""
    return bool(getattr(load_config(spec, notify=notify), "is_encoder_decoder", False))


def load_config(spec: str, *, notify: Callable[[str], None] | None = None) -> PretrainedConfig:
    """Load only the configuration of a base; the arguments and errors are those of `load_base`."""
    from transformers import AutoConfig

    config: PretrainedConfig = from_pretrained(AutoConfig, resolve(spec, notify))
    return config


def _encodes(config: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    names = getattr(config, "architectures", None) or ()
    writes = config.is_encoder_decoder or getattr(config, "is_decoder", False)
    return reads_images(config) or (
        config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and not writes
        and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    )


def _load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    directory = Path(source.location)
    if directory.is_dir() and not any(directory.glob("*token*")) and not any(directory.glob("*vocab*")):
        raise StoreError(
            f"base {source.name!r}: the directory holds no tokenizer. Save it there, too: "
            f"AutoTokenizer.from_pretrained(...).save_pretrained({str(directory)!r})."
        )
    tokenizer: PreTrainedTokenizerBase = from_pretrained(AutoTokenizer, source)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _torch_dtype(dtype: torch.dtype | str | None) -> torch.dtype | str:
    if dtype is None:
        return "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise StoreError(f'dtype {dtype!r}: expected a type of torch, such as "float32" or "bfloat16".')
    return found
