"""Which models can train on packed batches, and why the rest can't.

What breaks a packed batch is looked for by inspection first (`manytune/packing.py` says what); then two short sequences
are run packed and apart, and have to agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from manytune.packing import packing_obstacle
from manytune.training.batches import padded, shared_prefix
from manytune.training.batches.attention.packed import packed_attention
from manytune.training.batches.batch import Batch, base_model


def packed_training_obstacle(model: nn.Module) -> str | None:
    """Why padding-free and shared-prefix batches would not be exact on this model.

    Runs three short forwards without gradients if nothing is found by inspection. Leaves the model as it was.

    Args:
        model: A transformers causal language model, with or without an adapter, on the device where it will
            train.

    Returns:
        A clause that names what was found, such as "its layers of type conv carry state across positions";
        None if packed batches are exact, dropout of the adapter aside. Padded batches suit every model.

    Raises:
        TypeError: If there is no transformers model in it.
    """
    base = base_model(model)
    return (
        packing_obstacle(base, inputs=("position_ids",))
        or _balance_loss(base)
        or virtual_tokens(model)
        or _dropout(model)
        or _disagreement(base)
    )


def _balance_loss(base: PreTrainedModel) -> str | None:
    if getattr(base.config, "output_router_logits", False):
        return "its expert balance loss (output_router_logits) averages over rows, and shared rows are fewer"
    noise = getattr(base.config, "router_jitter_noise", 0.0)
    return f"its router adds noise (router_jitter_noise = {noise})" if noise else None


def virtual_tokens(model: nn.Module) -> str | None:
    """Which adapter puts virtual tokens before the others, as a clause; None if there is none."""
    for module in model.modules():
        for name, config in (getattr(module, "peft_config", None) or {}).items():
            if getattr(config, "is_prompt_learning", False):
                return f"adapter {name!r} puts virtual tokens before each row"
    return None


def _dropout(model: nn.Module) -> str | None:
    """Dropout that belongs to the base; an adapter's own is noise in any layout."""
    owner = {"": model}
    for name, module in model.named_modules():
        # Containers of torch belong to whoever holds them.
        parent = owner[name.rpartition(".")[0]]
        owner[name] = parent if type(module).__module__.startswith("torch.nn.") else module
        if isinstance(module, nn.Dropout) and module.p > 0 and _is_of_base(parent):
            return f"dropout is on in the base ({name}, p = {module.p})"
        p = getattr(module, "attention_dropout", 0.0)
        if isinstance(p, float) and p > 0:
            return f"dropout is on in the base ({name}.attention_dropout = {p})"
    return None


def _is_of_base(module: nn.Module) -> bool:
    return type(module).__module__.split(".")[0] not in ("manytune", "peft")


@dataclass(frozen=True)
class _Probe:
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    given: tuple[tuple[int, int], ...] = ()
    source: str = "probe"
    row: int = 1


def _disagreement(base: PreTrainedModel) -> str | None:
    """Run two sequences with a common prefix packed and apart, and compare their losses."""
    tokens = tuple((11 * i + 3) % base.config.vocab_size for i in range(10))
    pair = (_Probe(tokens[:6], tokens[6:7]), _Probe(tokens[:3], tokens[7:]))
    training = [module for module in base.modules() if module.training]
    base.eval()
    try:
        with torch.no_grad():
            with packed_attention(base):
                packed = _loss(base, shared_prefix.build(pair, pad_id=0))
            apart = sum(_loss(base, padded.build([sequence], pad_id=0)) for sequence in pair)
    finally:
        for module in training:
            module.training = True
    tolerance = max(torch.finfo(base.dtype).eps, torch.finfo(torch.float32).eps) ** 0.5
    if abs(packed - apart) <= tolerance * apart:
        return None
    return f"two short sequences give a loss of {packed:.6g} packed and {apart:.6g} apart"


def _loss(base: PreTrainedModel, batch: Batch) -> float:
    batch = batch.to(base.device)
    return float(batch.loss_sum(base(**batch.model_inputs(base)).logits))
