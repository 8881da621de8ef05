"""Mixtures of experts: the experts are grouped in parameters of three dimensions, and routers aren't linear layers.

`"all-linear"` adapts experts, too. So do the names that their linear layers had before transformers grouped them, such
as `gate_proj`, `up_proj` and `down_proj`: configurations use them, and older checkpoints hold a pair of factors for
each expert. A router is adapted if it is named.

Where one parameter holds two former layers, as `gate_up_proj` does, it gets twice the rank and twice alpha, as in HF
PEFT: the two factor pairs of rank r are one of rank 2r, in which B is block-diagonal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from manytune.errors import ConfigError
from manytune.methods.lora.config import LoraConfig
from manytune.methods.lora.parameter_targets import keeps_parameter, parameter_keys
from manytune.methods.lora.parameter_terms import together
from manytune.methods.tuners.grouped_experts import expert_parameters, is_router
from manytune.methods.tuners.names import shortest_names
from manytune.methods.tuners.targets import (
    Selection,
    base_of,
    candidates,
    first_match,
    is_all_linear,
    matches,
    minimal_names,
)

#: Parameters that hold two linear layers, one after the other or in turns.
_FUSED = ("gate_up_proj",)


@dataclass(frozen=True)
class Grouped:
    """One parameter that holds a linear layer of each expert, or two.

    Attributes:
        path: Of the layer that holds it.
        name: Its name there.
        experts: How many there are.
        former: What its linear layers were called, with a `*` for the expert's number; empty if they never were any.
    """

    path: str
    name: str
    experts: int
    former: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Path and name."""
        return f"{self.path}.{self.name}"

    @property
    def parts(self) -> int:
        """How many linear layers an expert has in it."""
        return len(self.former) or (2 if self.name in _FUSED else 1)


def grouped_experts(model: nn.Module) -> list[Grouped]:
    """The parameters of grouped experts in a model, in its order."""
    found = [Grouped(path, name, len(parameter)) for path, name, parameter in expert_parameters(model)]
    return _with_former_names(model, found) if found else []


def _with_former_names(model: nn.Module, experts: Sequence[Grouped]) -> list[Grouped]:
    if not isinstance(model, PreTrainedModel):
        return list(experts)
    former: dict[str, tuple[str, ...]] = {}
    for rule in get_model_conversion_mapping(model):
        if not isinstance(rule, WeightConverter) or len(rule.target_patterns) != 1:
            continue
        ending = "." + rule.target_patterns[0].lstrip(".")
        sources = [pattern.strip(".").removesuffix(".weight") for pattern in rule.source_patterns]
        for one in experts if all("*" in source for source in sources) else ():
            if one.key.endswith(ending):
                former[one.key] = tuple(f"{one.key.removesuffix(ending)}.{source}" for source in sources)
    return [Grouped(one.path, one.name, one.experts, former.get(one.key, ())) for one in experts]


def name_experts(model: nn.Module, config: LoraConfig) -> None:
    """Let a configuration name experts and routers as parameters, where `target_modules` means them.

    Mutates: `target_modules`, `target_parameters`, `rank_pattern` and `alpha_pattern`.

    Raises:
        ConfigError: It means one of two layers that are one parameter, or some of the experts.
    """
    targets = config.target_modules
    experts = grouped_experts(model) if targets or config.target_parameters else []
    if targets is None and any(one.former for one in experts):
        config.target_modules = set()  # as in HF PEFT: parameters alone, where they were named alone
    if not targets or not experts:
        return
    selection = Selection.of(config, targets)
    everything = is_all_linear(targets)
    meant = [one for one in experts if everything or _means(one, targets)]
    meant = [one for one in meant if keeps_parameter(selection, one.path, one.name)]
    routers = [] if everything else [p for p in _routers(model) if matches(p, targets) and selection.keeps(p)]
    if not everything and (meant or routers):
        config.target_modules = _without(model, targets, meant, routers)
    own = list(config.target_parameters or ())
    wanted = [one for one in meant if not matches(one.key, own)]
    keys = [one.key for one in wanted] + [f"{path}.weight" for path in routers]
    if keys:
        known = [f"{path}.{name}" for path, name in parameter_keys(model)]
        config.target_parameters = sorted({*own, *shortest_names(known, keys, parts=2)})
    for option, value in (("rank_pattern", config.r), ("alpha_pattern", config.lora_alpha)) if wanted else ():
        _widen(config, option, value, wanted)


def _means(one: Grouped, targets: str | set[str] | list[str]) -> bool:
    """Whether targets name all that a parameter holds, by its former names."""
    named = [
        [matches(former.replace("*", str(number)), targets) for number in (0, one.experts - 1)]
        for former in one.former
    ]
    if any(any(each) for each in named) and not all(all(each) for each in named):
        former = " and ".join(former.rsplit(".", 1)[-1] for former in one.former)
        raise ConfigError(
            f"target_modules names a part of {one.key}, which holds {former} of {one.experts} experts: LoRA adapts it "
            f"as a whole. Name {former} for all experts, or the parameter in target_parameters; to adapt other layers "
            "of these names alone, such as shared experts, give more of their paths."
        )
    return any(any(each) for each in named)


def _routers(model: nn.Module) -> list[str]:
    return [path for path, module in candidates(model) if is_router(base_of(module))]


def _without(
    model: nn.Module, targets: str | set[str] | list[str], meant: Sequence[Grouped], routers: Sequence[str]
) -> set[str]:
    """Targets less the names that mean experts and routers alone."""
    paths = [path for path, _ in candidates(model)]
    if isinstance(targets, str):
        return minimal_names(model, [p for p in paths if matches(p, targets) and p not in routers])
    taken = {former.replace("*", "0") for one in meant for former in one.former} | set(routers)
    return {
        name
        for name in targets
        if any(matches(path, [name]) for path in paths if path not in routers)
        or not any(matches(path, [name]) for path in taken)
    }


def _widen(config: LoraConfig, option: str, value: float, wanted: Sequence[Grouped]) -> None:
    pattern = dict(getattr(config, option) or {})
    for one in wanted:
        if one.parts > 1 and first_match(one.key, pattern) is None:
            pattern[rf".*\.{re.escape(one.name)}"] = value * one.parts
    if pattern:
        setattr(config, option, pattern)


def regrouped(
    tensors: Mapping[str, Tensor], experts: Sequence[Grouped], names: Mapping[str, str]
) -> dict[str, Tensor]:
    """An adapter's tensors with the factors of single experts put together, as this version's parameters want them.

    Args:
        tensors: By their name in a file, less the prefix.
        experts: The model's.
        names: What a file calls the wrapper of each parameter's key.

    Returns:
        The tensors; those of other layers as they are.
    """
    result = dict(tensors)
    for one in experts:
        pairs = [
            [[tensors.get(f"{layer}.lora_{x}.weight") for x in "AB"] for layer in _of_expert(one, number)]
            for number in range(one.experts)
        ]
        if (
            one.key not in names
            or not one.former
            or any(t is None for e in pairs for pair in e for t in pair)
        ):
            continue
        a = torch.stack([torch.cat([pair[0] for pair in expert]) for expert in pairs])  # type: ignore[misc]
        b = torch.stack([torch.block_diag(*(pair[1] for pair in expert)) for expert in pairs])
        for number in range(one.experts):
            for layer in _of_expert(one, number):
                del result[f"{layer}.lora_A.weight"], result[f"{layer}.lora_B.weight"]
        # (experts, r, in) and (experts, out, r)
        a, b = together(a, b)
        result[f"{names[one.key]}.lora_A.weight"], result[f"{names[one.key]}.lora_B.weight"] = a, b
    return result


def _of_expert(one: Grouped, number: int) -> list[str]:
    return [former.replace("*", str(number)) for former in one.former]
