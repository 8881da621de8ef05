"""Adapted parameters in an adapter's file.

A file has their tensors under the wrappers' paths, which lie in each other: `experts.base_layer.lora_A.weight` is A of
`gate_up_proj` if `experts.lora_A.weight` is that of `down_proj`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from manytune.methods.lora.config import LoraConfig
from manytune.methods.lora.parameter_targets import select_parameters
from manytune.methods.lora.parameter_terms import terms_at
from manytune.methods.lora.parameters import WITHIN, ParamWrapper, holder
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base_layers import BaseLayers
from manytune.methods.tuners.grouped_experts import expert_parameters
from manytune.methods.tuners.terms import FILE_PREFIX, Terms, TermsError

#: A name in a file of a version that had a layer for each expert; its first group is where the experts are.
_SINGLE_EXPERT = re.compile(r".*(\.experts)\.\d+\..*\.lora_[AB]\.weight")


def names_in_files(layers: Mapping[str, AdapterLayer], adapter_name: str) -> dict[str, str]:
    """What a file calls the paths of an adapter's wrappers, where those are other ones than here.

    In a file one adapter's wrappers lie in each other in the order of their parameters, whichever wrappers of other
    adapters lie between them here.
    """
    around: dict[str, list[tuple[str, ParamWrapper]]] = {}
    for path, layer in layers.items():
        if isinstance(layer, ParamWrapper) and layer.has_adapter(adapter_name):
            around.setdefault(holder(path), []).append((path, layer))
    names: dict[str, str] = {}
    for root, wrappers in around.items():
        order = list(wrappers[0][1].get_base_layer()._parameters)
        wrappers.sort(key=lambda each: order.index(each[1].parameter_name), reverse=True)
        names |= {path: root + WITHIN * depth for depth, (path, _) in enumerate(wrappers)}
    return names


def moved(key: str, names: Mapping[str, str]) -> str:
    """A tensor's key with its layer's path replaced; see `names_in_files`."""
    path = next(
        (path for path in sorted(names, key=len, reverse=True) if key.startswith(f"{path}.lora_")), None
    )
    return key if path is None else names[path] + key.removeprefix(path)


def parameter_terms(
    config: LoraConfig, tensors: Mapping[str, Tensor], model: nn.Module
) -> tuple[list[Terms], dict[str, Tensor]]:
    """The terms of the parameters that a saved adapter adapts, and those of its tensors that aren't theirs.

    Args:
        config: Its options.
        tensors: Its tensors by their names in the file.
        model: The base; adapters may be attached to it.

    Raises:
        TermsError: A tensor is missing or doesn't fit, or what LoRA does to a parameter has no terms.
    """
    _refuse_single_experts(tensors, model)
    rest, base = dict(tensors), BaseLayers(model)
    in_layers: dict[str, list[str]] = {}
    for path, name in select_parameters(model, config):
        in_layers.setdefault(path, []).append(name)
    parts = []
    for path, names in in_layers.items():
        for depth, name in enumerate(reversed(names)):
            start = f"{FILE_PREFIX}{path}{WITHIN * depth}."
            own = {key.removeprefix(start): rest.pop(key) for key in tensors if _is_of(key, start)}
            key = f"{path}.{name}"
            if not own:
                raise TermsError(
                    f"expected {start}lora_A.weight, for {key}, which target_parameters names; found no such tensor. "
                    "Is the file whole?"
                )
            parts.append(terms_at(base.at(path), name, own, config.rank_at(key), config.scaling_at(key)))
    return parts, rest


def _refuse_single_experts(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuse a file from before transformers grouped the base's experts, which loading would put together."""
    found = next((one for name in tensors if (one := _SINGLE_EXPERT.fullmatch(name))), None)
    if found is not None and any(path.endswith(found[1]) for path, _, _ in expert_parameters(model)):
        raise TermsError(
            f"its file holds factors of single experts ({found[0]}), as before transformers grouped them. Load it with "
            "PeftModel.from_pretrained(base, directory), save it with save_pretrained, and use that."
        )


def _is_of(key: str, start: str) -> bool:
    return key.startswith(f"{start}lora_")
