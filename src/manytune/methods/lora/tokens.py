"""`trainable_token_indices`: rows of an embedding that train next to LoRA; see `tuners/token_rows.py`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from manytune.errors import ConfigError
from manytune.methods.lora.config import LoraConfig
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.targets import candidates, matches
from manytune.methods.tuners.token_rows import ROWS, RowsOfOption, TokenRows
from manytune.methods.tuners.token_targets import RowPlan, RowTarget, input_embeddings, row_targets

_OPTION = "trainable_token_indices"


def rows_of(model: nn.Module, config: LoraConfig) -> list[RowTarget]:
    """The layers whose rows an adapter trains; none without the option."""
    given = config.trainable_token_indices
    if not given:
        return []
    wanted = given if isinstance(given, dict) else {input_embeddings(model): given}
    return row_targets(model, wanted, _OPTION, saved=config.was_saved)


def row_plan(
    model: nn.Module, config: LoraConfig, present: Mapping[str, AdapterLayer], chosen: Collection[str]
) -> RowPlan:
    """What a new adapter's rows are attached with.

    Args:
        model: The model.
        config: The adapter's options.
        present: The adapter layers that there are already, by path.
        chosen: The paths that LoRA goes to.

    Raises:
        ConfigError: A layer is targeted, or trained in full, as well.
    """
    plan = RowPlan(rows_of(model, config), RowsOfOption, present)
    if config.trains_tokens:
        plan.refuse(chosen, "target_modules")
        saving = config.modules_to_save or []
        plan.refuse([path for path, _ in candidates(model) if matches(path, saving)], "modules_to_save")
    return plan


def refuse_rows(layer: AdapterLayer, path: str) -> None:
    """Refuse LoRA on a layer some of whose rows other adapters train.

    Raises:
        ConfigError: It is one.
    """
    if isinstance(layer, TokenRows):
        raise ConfigError(
            f"Target module {path}: another adapter of this model trains rows of it ({_OPTION}). Load this one into a "
            "model of its own, or leave the module out of target_modules."
        )


def without_repeated_rows(
    layers: Mapping[str, AdapterLayer], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A checkpoint's tensors without the rows that HF PEFT repeats for a head that is tied to its embedding."""
    tied = {path for path, layer in layers.items() if isinstance(layer, TokenRows) and layer.is_tied}
    return {name: t for name, t in tensors.items() if name.removesuffix(f".token_adapter.{ROWS}") not in tied}


def refuse_sum_of_rows(configs: Sequence[Any]) -> None:
    """Refuse a weighted sum of adapters that train rows.

    Raises:
        ConfigError: One does.
    """
    if any(config.trains_tokens for config in configs):
        raise ConfigError(
            f"add_weighted_adapter: an adapter has {_OPTION}, and whole rows of an embedding don't add up. Merge the "
            "adapters one after the other instead."
        )
