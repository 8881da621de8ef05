"""Tensors of adapters that were trained when the base's modules had other names.

transformers renames modules from version to version and says how, for the base's own files. The same rules bring an
adapter's names up to date; those that the base has as they are stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from manytune.errors import CheckpointError


def present_names(
    model: nn.Module,
    keys: Iterable[str],
    known: Collection[str],
    key_mapping: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """What an adapter's tensors are called today, by what a file calls them.

    Args:
        model: The base.
        keys: The names in the file, less the prefix.
        known: What the adapter calls its tensors now.
        key_mapping: Regular expressions and what to write in their place; of several that match the first counts.
            None for what the base's class declares for older files.

    Raises:
        CheckpointError: `key_mapping` holds something else.
    """
    mapping = _declared(model) if key_mapping is None else dict(key_mapping)
    try:
        renamed = {key: _first(key, mapping) for key in keys}
    except (re.error, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"key_mapping: expected regular expressions with what to write in their place, found {mapping!r} ({error})."
        ) from None
    if not isinstance(model, PreTrainedModel) or all(key in known for key in renamed.values()):
        return renamed
    rules = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    return {key: name if name in known else _by_rules(model, name, rules) for key, name in renamed.items()}


def _declared(model: nn.Module) -> dict[str, str]:
    mapping = getattr(model, "_checkpoint_conversion_mapping", None)
    return mapping if isinstance(mapping, dict) else {}


def _first(key: str, mapping: Mapping[str, str]) -> str:
    for pattern, replacement in mapping.items():
        # A look-ahead in the pattern guards names that are already new.
        renamed, count = re.subn(pattern, replacement.removeprefix("^"), key)
        if count:
            return renamed
    return key


def _by_rules(model: nn.Module, key: str, rules: list[WeightRenaming]) -> str:
    renamed: str = rename_source_key(key, rules, [])[0]
    return renamed if _depth(model, renamed) > _depth(model, key) else key


def _depth(model: nn.Module, key: str) -> int:
    """How many of a name's parts lead through modules of the model."""
    module = model
    parts = key.split(".")
    for depth, part in enumerate(parts):
        child = module._modules.get(part)
        if child is None:
            return depth
        module = child
    return len(parts)
