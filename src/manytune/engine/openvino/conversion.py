"""A transformers decoder as an OpenVINO graph, with marks where attention and adapters' terms go.

The model itself is traced, with its attention and its layers' inputs and outputs marked, so that whatever its
architecture does in between is converted as it is. One in half precision is traced with activations in float32: the
graph has its weights as they are, and what it is compiled with says in which precision they are multiplied.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from manytune.engine.attention import UNSUPPORTED
from manytune.engine.openvino.library import load_frontend, torch_decoder
from manytune.engine.openvino.marks import mark
from manytune.errors import ConfigError
from manytune.layer_forwards import replaced_forwards
from manytune.own_dtype import HALF

NAME = "manytune-openvino-conversion"

#: Labels of marks: `attention 0`, `input model.layers.0.mlp.up_proj`, `output ...`.
ATTENTION, INPUT, OUTPUT = "attention ", "input ", "output "


@dataclass(frozen=True)
class Attention:
    """What one layer's attention computes.

    Attributes:
        layer: Index of the layer.
        key_heads: Heads of keys and values.
        head_dim: Size of a key.
        scaling: Factor of the scores.
        window: How many last positions a query sees, itself included; None for all.
    """

    layer: int
    key_heads: int
    head_dim: int
    scaling: float
    window: int | None


@dataclass(frozen=True)
class Converted:
    """A graph with marks; its weights are the torch model's own memory.

    Attributes:
        graph: From `embeddings` (windows, W, hidden), `positions` (windows, W) and `kept`, (K) places in a window, to
            logits (windows * K, vocabulary). Which tokens are in a row has no meaning but the order.
        attentions: One for each layer.
        layers: Paths of the layers whose inputs and outputs are marked.
        shared: Of layers that are computed as one product the layer whose input mark is that of all, by path.
    """

    graph: Any
    attentions: tuple[Attention, ...]
    layers: frozenset[str]
    shared: Mapping[str, str] = field(default_factory=dict)


class _Step(nn.Module):
    def __init__(self, model: PreTrainedModel, found: list[Attention]) -> None:
        super().__init__()
        self.model = model
        self.found = found

    def forward(self, embeddings: Tensor, positions: Tensor, kept: Tensor) -> Tensor:
        self.found.clear()  # tracing runs the model more than once
        logits: Tensor = self.model(
            inputs_embeds=embeddings,
            position_ids=positions,
            logits_to_keep=kept,
            use_cache=False,
            manytune_found=self.found,
        ).logits.flatten(0, 1)
        return logits


def convert(model: PreTrainedModel) -> Converted:
    """Convert a decoder.

    Args:
        model: One that the engine runs, in evaluation mode; it is the same afterwards.

    Raises:
        ConfigError: It can't be converted; the message says why.
    """
    layers = {path: module for path, module in model.named_modules() if _is_layer(module)}
    found: list[Attention] = []
    hidden = embedding_size(model)
    positions = torch.arange(5).expand(2, -1)
    example = (torch.zeros(2, 5, hidden), positions, torch.tensor([1, 4]))
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        forwards = {module: _marked(path, module) for path, module in layers.items()}
        with replaced_forwards(forwards), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing, about values that the shapes decide
            decoder = torch_decoder.TorchScriptPythonDecoder(_Step(model, found), example_input=example)
            frontend = load_frontend()
            graph = frontend.convert(frontend.load(decoder))
    except Exception as error:  # of whatever the model does, and in the converter of any kind
        raise ConfigError(f"{type(model).__name__} can't be converted: {_first_cause(error)}") from error
    finally:
        model.set_attn_implementation(before)
    return Converted(graph, tuple(found), frozenset(layers))


def embedding_size(model: PreTrainedModel) -> int:
    """Numbers of a token's embedding."""
    return int(model.get_input_embeddings().get_parameter("weight").shape[-1])


def _first_cause(error: BaseException) -> str:
    """What happened first, in a line: the converter wraps the model's own errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _is_layer(module: nn.Module) -> bool:
    """Whether adapters may act on it: a linear layer, or a norm."""
    if isinstance(module, nn.Linear | Conv1D):
        return True
    is_leaf = not any(True for _ in module.children())
    return is_leaf and [p.dim() for p in module.parameters()] in ([1], [1, 1])


def _marked(path: str, module: nn.Module) -> Callable[..., Any]:
    base = _forward(module)

    def forward(x: Tensor) -> Tensor:
        return mark(f"{OUTPUT}{path}", base(mark(f"{INPUT}{path}", x)))

    return forward


def _forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """A layer's forward, from and to float32; the trace has the weights in their own precision, and widens them."""
    if not any(parameter.dtype in HALF for parameter in module.parameters()):
        forward: Callable[[Tensor], Tensor] = type(module).forward.__get__(module)
        return forward

    def wide(x: Tensor) -> Tensor:
        twin = copy.copy(module)  # others may use the module
        twin._parameters = {
            name: one if one is None else one.to(x.dtype)  # type: ignore[misc]
            for name, one in module._parameters.items()
        }
        y: Tensor = type(module).forward(twin, x)
        return y

    return wide


def _marked_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    manytune_found: list[Attention] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as a mark around queries, keys and values, (T, heads * head_dim) each."""
    asked = [name for name in UNSUPPORTED if kwargs.get(name) is not None]
    if softcap is not None:
        asked.append("softcap")
    if attention_mask is not None or dropout:
        asked.append("a mask or dropout")
    if query.shape[-1] != value.shape[-1]:
        asked.append("values of another size than keys")
    if asked or manytune_found is None:
        raise ConfigError(f"paged attention has no {', '.join(asked) or 'use outside of a conversion'}")
    heads, size = query.shape[1], query.shape[-1]
    layer: int = module.layer_idx  # type: ignore[assignment]
    scale = size**-0.5 if scaling is None else scaling
    manytune_found.append(Attention(layer, key.shape[1], size, scale, sliding_window))
    flat = (part.transpose(1, 2).flatten(0, 1).flatten(1) for part in (query, key, value))
    return mark(f"{ATTENTION}{layer}", *flat).view(query.shape[0], -1, heads, size), None


AttentionInterface.register(NAME, _marked_attention)
