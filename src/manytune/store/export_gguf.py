"""An adapter as llama.cpp reads it: `llama-cli -m base.gguf --lora adapter.gguf`.

llama.cpp adds scale · alpha / r · B A to the weight of the same name, with one alpha for the file and r from the shape
of B. So any adapter can be written whose terms are low-rank updates of the weights of linear layers, of the token
embeddings, and of routers and experts, whatever its method: D is A, and U times its scaling is B. Experts' A is
(experts, r, in) and their B (experts, out, r).

llama.cpp keeps the query and key projections of Llama models in another order of rows than transformers: transformers
rotates the first half of each head with the second, llama.cpp each even row with the next odd one. B's rows follow. Of
an embedding table it looks up the rows of A, which is transposed for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from manytune.atomic import atomic_file, make_directory
from manytune.errors import ConfigError, StoreError
from manytune.methods.checkpoint.format import read_tensors
from manytune.methods.config import PeftConfig
from manytune.methods.registry import method_of
from manytune.methods.tuners.layer_terms import with_own_tables
from manytune.methods.tuners.terms import Factors, ParameterUpdate, Terms, TermsError, Update
from manytune.store.adapters import open_adapter
from manytune.store.gguf_experts import in_single_projections

#: By transformers' `model_type`: llama.cpp's name of the architecture, and whether it reorders queries and keys.
ARCHITECTURES: Mapping[str, tuple[str, bool]] = {
    "llama": ("LLAMA", True),
    "mistral": ("LLAMA", True),
    "qwen2": ("QWEN2", False),
    "qwen3": ("QWEN3", False),
    "qwen3_moe": ("QWEN3MOE", False),
    "mixtral": ("LLAMA", True),
    "gemma": ("GEMMA", False),
    "gemma2": ("GEMMA2", False),
}
_EMBEDDINGS, _HEAD = "token_embd.weight", "output.weight"


def export_gguf(
    directory: str | Path, target: Path, model_config: Any, base: Callable[[], nn.Module] | None = None
) -> None:
    """Write an adapter as a GGUF file; float16 stays float16, all else becomes float32.

    Args:
        directory: The adapter's directory.
        target: The file; replaced if it is there.
        model_config: The configuration of its base, for the architecture and its sizes.
        base: Loads the base. It is called only if its weights are needed, as for an adapter whose file holds a table
            that must be the base's own; without it such an adapter is refused.

    Raises:
        StoreError: The adapter is none that llama.cpp can run, or the base's architecture isn't known here.
    """
    import gguf

    stored = open_adapter(directory)
    if model_config.model_type not in ARCHITECTURES:
        raise StoreError(
            f"{stored.path}: the base is a {model_config.model_type!r} model; adapters of {', '.join(ARCHITECTURES)} "
            "can be written for llama.cpp. Merge the adapter, and convert the merged model with llama.cpp's own script."
        )
    architecture, reordered = ARCHITECTURES[model_config.model_type]
    kind = gguf.MODEL_ARCH[architecture]
    names = gguf.get_tensor_name_map(kind, model_config.num_hidden_layers)
    updates = _updates(stored.path, _hollow(model_config), base)
    alpha = _alpha(updates.values())
    # What is added to a weight is added wherever llama.cpp uses it.
    has_head = names.get_name("lm_head.weight", try_suffixes=(".weight",)) is not None
    shared = model_config.tie_word_embeddings or not has_head
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for path, update in updates.items():
        name = names.get_name(f"{path}.weight", try_suffixes=(".weight",))
        if name is None:
            raise StoreError(f"{stored.path}: llama.cpp's {architecture} models have nothing like {path}.")
        if shared and name in (_EMBEDDINGS, _HEAD):
            other = "embeddings" if name == _HEAD else "output head"
            raise _refusal(
                stored.path, f"{path} shares its weight with the {other}, which llama.cpp keeps once for both"
            )
        a, b = _pair(update, alpha)
        if reordered and path.endswith(("q_proj", "k_proj")):
            b = llama_cpp_order(b, _heads(model_config, path))
        pairs[name] = a, b
    make_directory(target.parent)
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[kind])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for name, (a, b) in pairs.items():
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


def _hollow(model_config: Any) -> nn.Module:
    """A base whose weights are ones without memory of their own: what asks for shapes alone gets them."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model: nn.Module = AutoModelForCausalLM.from_config(model_config)
    filled: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                ones = torch.ones((), dtype=parameter.dtype).expand(parameter.shape)
                filled.setdefault(parameter, nn.Parameter(ones, requires_grad=False))
                module._parameters[name] = filled[parameter]
    return model


def _updates(
    path: Path, shape: nn.Module, base: Callable[[], nn.Module] | None
) -> dict[str, Update | ParameterUpdate]:
    """An adapter's low-rank updates by the path of their layer, if they are all that it does."""
    config, tensors = PeftConfig.from_pretrained(path), read_tensors(path)
    state = method_of(config).tuner.terms
    try:
        compared = config.trains_tokens or bool(with_own_tables(shape, config, tensors)[1])
        if compared and base is None:
            raise TermsError(
                "its file holds rows or tables of embeddings, which have to be compared with the base's. Name the base."
            )
        try:
            terms = state(config, tensors, base() if compared and base is not None else shape)
        except TermsError:
            if base is None or compared:
                raise
            terms = state(config, tensors, base())
    except ConfigError as error:
        raise StoreError(f"{path}: {error}") from None
    obstacle = _obstacle(terms)
    if obstacle is not None:
        raise _refusal(path, obstacle)
    return {**terms.updates, **in_single_projections(terms.parameters, shape)}


def _obstacle(terms: Terms) -> str | None:
    """What an adapter does that llama.cpp doesn't, as a clause."""
    if terms.virtual_tokens:
        return "it has virtual tokens"
    if terms.activation is not None or terms.reads_output:
        return "it has a network of its own behind a layer"
    for path, update in terms.updates.items():
        if update.down is None:
            return f"it has a weight of its own for {path}"
        if update.source is not None:
            return f"it reads the input of {update.source} for {path}"
        if update.down_bias is not None or update.up_bias is not None:
            return f"it adds a bias to {path}"
    for path, factors in terms.factors.items():
        return f"it {_words(factors)} of {path}"
    return None if terms.updates or terms.parameters else "it changes nothing"


def _words(factors: Factors) -> str:
    if factors.inputs is not None:
        return "scales the inputs"
    return "scales the outputs" if factors.outputs is not None else "shifts the outputs"


def _refusal(path: Path, obstacle: str) -> StoreError:
    return StoreError(
        f"{path}: llama.cpp adds low-rank products to weights and does nothing else, and {obstacle}. Merge the adapter "
        "into its base, if it goes into the weights, and convert the merged model with llama.cpp's own script."
    )


def _alpha(updates: Iterable[Update | ParameterUpdate]) -> float:
    """The file's alpha, which for most layers gives their scaling as alpha / r; it can't be 0, which means no alpha."""
    counts = Counter(alpha for one in updates if (alpha := float(numpy.float32(one.scaling * one.rank))))
    return max(counts, key=lambda alpha: (counts[alpha], alpha)) if counts else 1.0


def _pair(update: Update | ParameterUpdate, alpha: float) -> tuple[Tensor, Tensor]:
    """A and B, of which the latter makes up for a scaling that isn't alpha / r."""
    assert update.down is not None
    a, b = _float(update.down), _float(update.up) * (update.scaling * update.rank / alpha)
    return a.t() if isinstance(update, Update) and update.lookup else a, b


def _float(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float16 else tensor.float()


def _heads(model_config: Any, path: str) -> int:
    queries: int = model_config.num_attention_heads
    return (
        queries if path.endswith("q_proj") else getattr(model_config, "num_key_value_heads", None) or queries
    )


def _array(tensor: Tensor) -> numpy.ndarray[Any, Any]:
    array: numpy.ndarray[Any, Any] = tensor.detach().contiguous().numpy()
    return array
