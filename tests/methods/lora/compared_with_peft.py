"""Our LoRA and the installed HF PEFT's on equal bases; HF PEFT is the oracle, by being run."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from tests.methods.tiny_models import GPT2, LLAMA
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import manytune

#: What HF PEFT says on its own account while it does what it is asked.
_PEFTS_OWN = (
    "`is_gradient_checkpointing` is deprecated",
    "`gradient_checkpointing_enable` is deprecated",
    "fan_in_fan_out is set to",
    "Adapter .* was active which is now deleted",
    "Model has `tie_word_embeddings=True`",
    "Setting `save_embedding_layers` to `True`",
    "Careful, disabling adapter layers with bias",
    "Could not find a config file in",
    "No config.json of",
    ".*tensor.s. have invalid shape: .*lora_B.bias",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that HF PEFT gives where nothing is wrong."""
    with warnings.catch_warnings():
        for message in _PEFTS_OWN:
            warnings.filterwarnings("ignore", message=message)
        yield


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, width)
        self.v = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.tanh(self.q(x)) + self.v(x)
        return result


class Net(nn.Module):
    """An embedding, two blocks, GPT-2's Conv1D and a head: every kind of layer that LoRA is attached to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(11, 6, padding_idx=0)
        self.layers = nn.ModuleList([Block(6), Block(6)])
        self.c1 = Conv1D(5, 6)
        self.head = nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        for layer in self.layers:
            x = layer(x)
        result: Tensor = self.head(torch.tanh(self.c1(x)))
        return result


def _net_ids() -> Tensor:
    return torch.randint(0, 11, (3, 4), generator=torch.Generator().manual_seed(2))


@dataclass(frozen=True)
class Case:
    """One configuration on one kind of base."""

    name: str
    build: Callable[[], nn.Module]
    options: dict[str, Any] = field(hash=False)

    def base(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        return self.build().to(dtype)

    def attach(self, library: Any, base: nn.Module, name: str = "default", **extra: Any) -> Any:
        config = library.LoraConfig(**copy.deepcopy(self.options))
        torch.manual_seed(4)
        with quiet() if library is peft else warnings.catch_warnings():
            return library.get_peft_model(base, config, name, **extra)

    def both(self, dtype: torch.dtype = torch.float64, **extra: Any) -> tuple[Any, Any]:
        base = self.base(dtype)
        theirs = self.attach(peft, copy.deepcopy(base), **extra)
        return self.attach(manytune, base, **extra), theirs

    def __str__(self) -> str:
        return self.name


def run(model: nn.Module) -> Tensor:
    """The model's output on fixed ids."""
    if isinstance(getattr(model, "base_model", model), Net) or hasattr(model, "emb"):
        result: Tensor = model(_net_ids())
        return result
    ids = torch.randint(3, 64, (2, 7), generator=torch.Generator().manual_seed(2))
    logits: Tensor = model(input_ids=ids).logits
    return logits


def scatter(model: nn.Module, seed: int = 9) -> None:
    """Move every parameter that trains to a value that depends on its place among them only."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in sorted_trainable(model).values():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.add_((0.2 * noise).to(parameter.dtype))


def sorted_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name, in the order of their names."""
    return {n: p for n, p in sorted(model.named_parameters()) if p.requires_grad}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients of a fixed weighted sum of the output."""
    model.zero_grad()
    output = run(model)
    (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


_CAUSAL = {"task_type": "CAUSAL_LM"}
NET = {"target_modules": ["emb", "q", "v", "c1"]}

CASES = [
    Case("net-default", Net, NET),
    Case("net-linear-only", Net, {"target_modules": ["q"]}),
    Case("net-embedding-only", Net, {"target_modules": ["emb"], "r": 3}),
    Case("net-conv1d-only", Net, {"target_modules": ["c1"], "r": 2}),
    Case("net-regular-expression", Net, {"target_modules": r"layers\.\d\.(q|v)"}),
    Case("net-alpha", Net, NET | {"r": 4, "lora_alpha": 32}),
    Case("net-rslora", Net, NET | {"r": 4, "use_rslora": True}),
    Case("net-gaussian", Net, NET | {"init_lora_weights": "gaussian"}),
    Case("net-random", Net, NET | {"init_lora_weights": False}),
    Case("net-bias-all", Net, NET | {"bias": "all"}),
    Case("net-bias-lora-only", Net, NET | {"bias": "lora_only"}),
    Case("net-modules-to-save", Net, NET | {"modules_to_save": ["head"]}),
    Case("net-lora-bias", Net, {"target_modules": ["q", "c1"], "lora_bias": True}),
    Case("net-exclude-list", Net, NET | {"exclude_modules": ["layers.0.q", "c1"]}),
    Case("net-exclude-expression", Net, NET | {"exclude_modules": r".*\.1\..*"}),
    Case(
        "net-layers-pattern",
        Net,
        {"target_modules": ["q", "v"], "layers_to_transform": [0], "layers_pattern": "layers"},
    ),
    Case(
        "net-rank-and-alpha-pattern",
        Net,
        NET
        | {
            "rank_pattern": {"layers.0.q": 3, r"layers\.\d+\.v": 5, "^emb": 2},
            "alpha_pattern": {"q": 2, "^layers.1.v": 64, "c1": 7},
        },
    ),
    Case(
        "net-rslora-pattern",
        Net,
        NET | {"use_rslora": True, "rank_pattern": {"q": 4}, "alpha_pattern": {"v": 3}},
    ),
    Case("net-dropout", Net, NET | {"lora_dropout": 0.3}),
    Case("llama-default", LLAMA.build, _CAUSAL),
    Case("llama-all-linear", LLAMA.build, _CAUSAL | {"target_modules": "all-linear", "r": 2}),
    Case(
        "llama-one-layer",
        LLAMA.build,
        _CAUSAL | {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    ),
    Case("llama-head-saved", LLAMA.build, _CAUSAL | {"modules_to_save": ["lm_head"]}),
    Case("llama-embedding", LLAMA.build, _CAUSAL | {"target_modules": ["embed_tokens", "q_proj"]}),
    Case("llama-dropout", LLAMA.build, _CAUSAL | {"lora_dropout": 0.4}),
    Case("llama-without-task", LLAMA.build, {}),
    Case("gpt2-default", GPT2.build, _CAUSAL),
    Case("gpt2-all-linear", GPT2.build, _CAUSAL | {"target_modules": "all-linear", "r": 2}),
    Case("gpt2-bias-all", GPT2.build, _CAUSAL | {"bias": "all"}),
    Case("gpt2-embedding", GPT2.build, _CAUSAL | {"target_modules": ["wte", "wpe", "c_fc"]}),
]
BY_NAME = {case.name: case for case in CASES}
