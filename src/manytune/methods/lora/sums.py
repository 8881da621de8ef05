"""Weighted sums of LoRA adapters; `arithmetic/combination.py` says which kinds there are."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from manytune.errors import ConfigError
from manytune.methods.arithmetic.combination import Combination
from manytune.methods.lora.config import LoraConfig
from manytune.methods.lora.conv import Conv
from manytune.methods.lora.embedding import Embedding
from manytune.methods.lora.init import starts_from_weight
from manytune.methods.lora.layer import LoraLayer
from manytune.methods.lora.parameter_terms import together
from manytune.methods.lora.parameters import ParamWrapper, holder


def sum_options(
    adapters: Sequence[str], configs: Sequence[LoraConfig], carrying: Mapping[str, Any], how: Combination
) -> dict[str, Any]:
    """Options of a sum, other than the modules that it targets.

    Args:
        adapters: The adapters.
        configs: The options of each.
        carrying: The layers that carry one of them, by path.
        how: The kind of sum.

    Raises:
        ConfigError: An adapter is more than BA, or the kind needs equal ranks and they differ.
    """
    _refuse_unlike_sums(adapters, configs)
    keys = {
        path: f"{holder(path)}.{layer.parameter_name}"
        for path, layer in carrying.items()
        if isinstance(layer, ParamWrapper)
    }
    ranks = {
        keys.get(path, path): _rank(layer, path, [name for name in adapters if layer.has_adapter(name)], how)
        for path, layer in carrying.items()
    }
    rank = max(ranks.values())
    others = {f"^{re.escape(path)}": own for path, own in ranks.items() if own != rank}
    return {
        **{"r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": dict(others)},
        **{"layers_to_transform": None, "layers_pattern": None, "use_rslora": False, "bias": "none"},
        "init_lora_weights": True,
        "target_parameters": sorted(keys.values()) or None,
    }


def write_sum(
    layer: LoraLayer,
    path: str,
    adapter_name: str,
    adapters: Sequence[str],
    weights: Sequence[float],
    how: Combination,
) -> None:
    """Set an adapter's factors at a layer to those of a sum.

    Args:
        layer: The layer.
        path: Its path, for messages.
        adapter_name: The sum, of which the layer has the factors, with a scaling of 1.
        adapters: What is added up; the layer carries all of these.
        weights: One for each.
        how: The kind of sum.
    """
    mine = layer.tensors(adapter_name)
    factors = _combined(layer, path, adapters, weights, layer.r[adapter_name], how)
    for key, value in zip(_factor_names(layer), factors, strict=True):
        mine[key].copy_(value.view(mine[key].shape))


def _refuse_unlike_sums(adapters: Sequence[str], configs: Sequence[LoraConfig]) -> None:
    for name, config in zip(adapters, configs, strict=True):
        if config.use_dora or config.lora_bias:
            option = "use_dora" if config.use_dora else "lora_bias"
            raise ConfigError(
                f"Adapter '{name}' has {option}=True: what it adds isn't BA alone, so it has no sum."
            )
        if starts_from_weight(config.init_lora_weights):
            raise ConfigError(
                f"Adapter '{name}' starts from the base's weights (init_lora_weights={config.init_lora_weights!r}). "
                "Turn it into a plain LoRA adapter first, with save_pretrained's "
                "path_initial_model_for_weight_conversion, and load that."
            )


def _rank(layer: LoraLayer, path: str, names: Sequence[str], how: Combination) -> int:
    ranks = [layer.r[name] for name in names]
    if how.kind == "cat":
        return sum(ranks)
    if how.on_deltas:
        return how.svd_rank or max(ranks)
    if len(set(ranks)) > 1:
        raise ConfigError(
            "All adapters must have the same r value when using combination_type linear, ties, dare_ties, dare_linear "
            f"or magnitude_prune; at {path} they have {dict(zip(names, ranks, strict=True))}. Use 'cat' or 'svd'."
        )
    return ranks[0]


def _factor_names(layer: LoraLayer) -> tuple[str, str]:
    if isinstance(layer, Embedding):
        return "lora_embedding_A", "lora_embedding_B"
    return "lora_A.weight", "lora_B.weight"


def _combined(
    layer: LoraLayer, path: str, names: Sequence[str], weights: Sequence[float], rank: int, how: Combination
) -> tuple[Tensor, Tensor]:
    """A and B of the combination, with a scaling of 1."""
    if how.on_deltas:
        deltas = [layer.get_delta_weight(name) for name in names]
        return _factored(layer, how(deltas, weights), rank, how)
    key_a, key_b = _factor_names(layer)
    factors = [layer.tensors(name) for name in names]
    scaled = [weight * layer.scaling[name] for weight, name in zip(weights, names, strict=True)]
    if how.kind == "cat":
        if isinstance(layer, Conv) and layer.base_layer.groups > 1 and len(names) > 1:
            raise ConfigError(f"{path}: factors of a convolution with groups can't be put side by side.")
        if isinstance(layer, ParamWrapper):
            pairs = [layer.of_experts(name) for name in names]
            a = torch.cat([own * weight for (own, _), weight in zip(pairs, scaled, strict=True)], dim=1)
            return together(a, torch.cat([own for _, own in pairs], dim=2))
        a = torch.cat([own[key_a] * weight for own, weight in zip(factors, scaled, strict=True)], dim=0)
        return a, torch.cat([own[key_b] for own in factors], dim=1)
    # Half of each weight goes to either factor; a sign to one of them alone.
    roots = [math.sqrt(abs(weight)) for weight in scaled]
    signed = [math.copysign(root, weight) for root, weight in zip(roots, scaled, strict=True)]
    return how([own[key_a] for own in factors], signed), how([own[key_b] for own in factors], roots)


def _factored(layer: LoraLayer, delta: Tensor, rank: int, how: Combination) -> tuple[Tensor, Tensor]:
    """The best A and B of a rank for ΔW, by its singular values; directions that ΔW hasn't are zero."""
    if isinstance(layer, ParamWrapper):
        each = delta.mT if layer.kept_transposed else delta
        pairs = [_best(one, rank, how) for one in (each if each.dim() == 3 else each[None])]
        return together(*map(torch.stack, zip(*pairs, strict=True)))
    return _best(delta.t() if layer.output_dim == 1 else delta.flatten(1), rank, how)


def _best(delta: Tensor, rank: int, how: Combination) -> tuple[Tensor, Tensor]:
    u, values, vt = torch.linalg.svd(delta, full_matrices=how.svd_full_matrices, driver=how.svd_driver)
    used = min(rank, len(values))
    a, b = delta.new_zeros(rank, vt.shape[1]), delta.new_zeros(u.shape[0], rank)
    a[:used], b[:, :used] = vt[:used], u[:, :used] * values[:used]
    if how.svd_clamp is not None:
        high = torch.quantile(torch.cat([b.flatten(), a.flatten()]), how.svd_clamp)
        a, b = a.clamp(-high, high), b.clamp(-high, high)
    return a, b
