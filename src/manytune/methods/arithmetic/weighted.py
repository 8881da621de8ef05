"""Arithmetic of adapters: a new adapter as the weighted combination of others, the negation of one included.

A LoRA adapter adds ΔW = s·BA. Combinations work on these deltas, exactly (`cat`) or as well as a rank allows (the
`svd` kinds), or on the factors A and B themselves (`linear`, `ties`, `dare_*`, `magnitude_prune`), which leaves cross
terms. Task arithmetic is due to Ilharco et al., arXiv 2212.04089.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manytune.errors import AdapterError, ConfigError
from manytune.methods.arithmetic.pruning import agreeing_mean, at_random, largest, weighted_sum
from manytune.methods.ia3 import IA3Model
from manytune.methods.lora.config import LoraConfig
from manytune.methods.lora.conv import Conv
from manytune.methods.lora.embedding import Embedding
from manytune.methods.lora.init import starts_from_weight
from manytune.methods.lora.layer import LoraLayer
from manytune.methods.lora.model import LoraModel
from manytune.methods.tuners.base import NotInLayersError, Tuner
from manytune.methods.tuners.layer_tuner import LayerTuner

#: By kind, less `_svd`: how values are dropped, and whether signs are elected.
_KINDS = {
    "svd": (None, False),
    "linear": (None, False),
    "cat": (None, False),
    "ties": (largest, True),
    "dare_linear": (at_random, False),
    "dare_ties": (at_random, True),
    "magnitude_prune": (largest, False),
}
COMBINATIONS = (*_KINDS, "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")


@dataclass(frozen=True)
class Combination:
    """How to combine.

    Attributes:
        kind: One of `COMBINATIONS`.
        svd_rank: The rank to cut the `svd` kinds to; by default the largest of the adapters'.
        svd_clamp: Cut the factors at this quantile of their values, against outliers.
        svd_full_matrices: Compute the whole of U and V, as HF PEFT does by default; the result is the same.
        svd_driver: The algorithm, for CUDA tensors; see `torch.linalg.svd`.
        density: The share of values that pruning kinds keep, above 0 and at most 1.
        sign: How TIES elects signs, `"total"` or `"frequency"`.

    Raises:
        ConfigError: An option can't be used.
    """

    kind: str = "svd"
    svd_rank: int | None = None
    svd_clamp: float | None = None
    svd_full_matrices: bool = True
    svd_driver: str | None = None
    density: float | None = None
    sign: str = "total"

    def __post_init__(self) -> None:
        if self.kind not in COMBINATIONS:
            raise ConfigError(f"Invalid combination_type: {self.kind}. Known: {', '.join(COMBINATIONS)}.")
        if self.prunes and (self.density is None or not 0 < self.density <= 1):
            raise ConfigError(
                f"combination_type={self.kind!r} keeps a share of the values: expected density above 0 and at most 1, "
                f"found {self.density!r}."
            )
        if self.sign not in ("total", "frequency"):
            raise ConfigError(f"majority_sign_method: expected 'total' or 'frequency', found {self.sign!r}.")

    @property
    def on_deltas(self) -> bool:
        """Whether ΔW is combined and then factored anew."""
        return self.kind.endswith("svd")

    @property
    def prunes(self) -> bool:
        """Whether values are dropped."""
        return _KINDS[self.kind.removesuffix("_svd")][0] is not None

    def __call__(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Combine one tensor of each adapter."""
        prune, elects = _KINDS[self.kind.removesuffix("_svd")]
        if prune is not None:
            assert self.density is not None
            tensors = [prune(tensor, self.density) for tensor in tensors]
        return agreeing_mean(tensors, weights, self.sign) if elects else weighted_sum(tensors, weights)


@torch.no_grad()
def add_weighted_adapter(
    tuner: Tuner, adapters: Sequence[str], weights: Sequence[float], adapter_name: str, how: Combination
) -> None:
    """Add the weighted combination of adapters as a new one, frozen and not in use.

    Raises:
        AdapterError: An adapter isn't loaded; the name is taken; the numbers of adapters and weights differ; or
            several adapters have a copy of the same module.
        ConfigError: The kind needs equal ranks and they differ; or an adapter isn't a plain sum (DoRA, PiSSA).
    """
    # Other methods derive from LoRA's and have more than the sum BA.
    if not isinstance(tuner, LayerTuner) or type(tuner) not in (LoraModel, IA3Model):
        raise NotInLayersError(f"add_weighted_adapter: {type(tuner).__name__} has no arithmetic of adapters.")
    for name in adapters:
        tuner._require(name)
    if not adapters or len(adapters) != len(weights):
        raise AdapterError(
            f"Expected one weight for each adapter, found {len(adapters)} adapters and {len(weights)} weights."
        )
    donors = _donors(tuner, adapters)
    config = _config(tuner, adapters, how)
    tuner.add_adapter(adapter_name, config)
    for path, layer in tuner._layers.items():
        pairs = [(n, w) for n, w in zip(adapters, weights, strict=True) if layer.has_adapter(n)]
        if not pairs or not layer.has_adapter(adapter_name):
            continue
        names, own = [name for name, _ in pairs], [weight for _, weight in pairs]
        mine = layer.tensors(adapter_name)
        if isinstance(layer, LoraLayer):
            a, b = _combined(layer, path, names, own, layer.r[adapter_name], how)
            for key, value in zip(_factor_names(layer), (a, b), strict=True):
                mine[key].copy_(value.view(mine[key].shape))
        else:
            mine["ia3_l"].copy_(weighted_sum([layer.tensors(name)["ia3_l"] for name in names], own))
    for path, donor in donors.items():
        target = tuner._saved[path].tensors(adapter_name)
        for key, value in tuner._saved[path].tensors(donor).items():
            target[key].copy_(value)


def _donors(tuner: LayerTuner, adapters: Sequence[str]) -> dict[str, str]:
    """For each module trained in full by one of the adapters, by which."""
    donors = {}
    for path, keeper in tuner._saved.items():
        owners = [name for name in dict.fromkeys(adapters) if name in keeper.modules_to_save]
        if len(owners) > 1:
            raise AdapterError(
                "Cannot add weighted adapters if they target the same module with modules_to_save: "
                f"{path} is trained in full by {owners}, and whole modules don't add up."
            )
        if owners:
            donors[path] = owners[0]
    return donors


def _config(tuner: LayerTuner, adapters: Sequence[str], how: Combination) -> Any:
    configs: list[Any] = [tuner.peft_config[name] for name in adapters]
    carrying = {p: layer for p, layer in tuner._layers.items() if any(map(layer.has_adapter, adapters))}
    targets: set[str] = set(carrying)
    narrowed = any(c.exclude_modules or getattr(c, "layers_to_transform", None) is not None for c in configs)
    if not narrowed and all(isinstance(config.target_modules, set) for config in configs):
        targets = set().union(*(config.target_modules for config in configs))
    saved = sorted({name for config in configs for name in config.modules_to_save or ()})
    options: dict[str, Any] = {
        "target_modules": targets,
        "exclude_modules": None,
        "modules_to_save": saved or None,
    }
    if isinstance(configs[0], LoraConfig):
        _refuse_unlike_sums(adapters, configs)
        ranks = {
            path: _rank(layer, path, [name for name in adapters if layer.has_adapter(name)], how)
            for path, layer in carrying.items()
            if isinstance(layer, LoraLayer)
        }
        rank = max(ranks.values())
        others = {f"^{re.escape(path)}": own for path, own in ranks.items() if own != rank}
        options |= {"r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": dict(others)}
        options |= {"layers_to_transform": None, "layers_pattern": None, "use_rslora": False, "bias": "none"}
        options |= {"init_lora_weights": True}
    else:
        feedforward: set[str] = set()
        for config in configs:
            named = config.feedforward_modules
            feedforward |= set() if not named else {named} if isinstance(named, str) else named
        options["feedforward_modules"] = feedforward
    return dataclasses.replace(configs[0], **options)


def _refuse_unlike_sums(adapters: Sequence[str], configs: Sequence[Any]) -> None:
    for name, config in zip(adapters, configs, strict=True):
        if config.target_parameters:
            raise ConfigError(
                f"Adapter '{name}' has target_parameters={sorted(config.target_parameters)}: sums of these aren't "
                "implemented."
            )
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
        a = torch.cat([own[key_a] * weight for own, weight in zip(factors, scaled, strict=True)], dim=0)
        return a, torch.cat([own[key_b] for own in factors], dim=1)
    # Half of each weight goes to either factor; a sign to one of them alone.
    roots = [math.sqrt(abs(weight)) for weight in scaled]
    signed = [math.copysign(root, weight) for root, weight in zip(roots, scaled, strict=True)]
    return how([own[key_a] for own in factors], signed), how([own[key_b] for own in factors], roots)


def _factored(layer: LoraLayer, delta: Tensor, rank: int, how: Combination) -> tuple[Tensor, Tensor]:
    """The best A and B of a rank for ΔW, by its singular values; directions that ΔW hasn't are zero."""
    if layer.output_dim == 1:
        delta = delta.t()
    u, values, vt = torch.linalg.svd(
        delta.flatten(1), full_matrices=how.svd_full_matrices, driver=how.svd_driver
    )
    used = min(rank, len(values))
    a, b = delta.new_zeros(rank, vt.shape[1]), delta.new_zeros(u.shape[0], rank)
    a[:used], b[:, :used] = vt[:used], u[:, :used] * values[:used]
    if how.svd_clamp is not None:
        high = torch.quantile(torch.cat([b.flatten(), a.flatten()]), how.svd_clamp)
        a, b = a.clamp(-high, high), b.clamp(-high, high)
    return a, b
