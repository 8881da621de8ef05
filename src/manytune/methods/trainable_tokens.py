"""Trainable tokens: some rows of an embedding table train, and all else is frozen.

For new tokens, such as those of a conversation's format, and for a few old ones: a file holds these rows alone. A tied
output head has the same rows, so the tokens are read and written alike. As an option of LoRA, `trainable_token_indices`
does it next to the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from manytune.errors import ConfigError
from manytune.methods.config import PeftConfig, PeftType, as_name_set
from manytune.methods.registry import Method, register
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base_layers import BaseLayers
from manytune.methods.tuners.layer_terms import saved_terms
from manytune.methods.tuners.layer_tuner import LayerTuner
from manytune.methods.tuners.targets import candidates, matches
from manytune.methods.tuners.terms import FILE_PREFIX, Terms, joined
from manytune.methods.tuners.token_rows import TokenRows, rows_in_file
from manytune.methods.tuners.token_targets import (
    RowPlan,
    RowTarget,
    file_row_terms,
    input_embeddings,
    row_targets,
)
from manytune.methods.tuners.unmatched import nearest, report


@dataclass
class TrainableTokensConfig(PeftConfig):
    """Trainable tokens.

    Args:
        token_indices: The tokens whose rows train, by their ids.
        target_modules: The embeddings, as a list of paths and path endings, or a regular expression for whole paths; by
            default the model's input embeddings. What shares their weight, such as a tied head, follows.
        init_weights: Start from the base's rows, which changes nothing; False draws them from N(0, 1).

    Raises:
        ConfigError: No tokens are named.
    """

    token_indices: list[int] = field(default_factory=list)
    target_modules: list[str] | set[str] | str | None = None
    init_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.TRAINABLE_TOKENS
        self.target_modules = as_name_set(self.target_modules)
        if not self.token_indices:
            raise ConfigError(
                "TrainableTokensConfig(token_indices=[]): name the tokens to train, such as "
                "tokenizer.convert_tokens_to_ids(['<|new|>'])."
            )

    @property
    def trains_tokens(self) -> bool:
        """See `PeftConfig.trains_tokens`."""
        return True


class TrainableTokensModel(LayerTuner):
    """Trainable tokens attached to a model; see `TrainableTokensConfig`."""

    prefix: ClassVar[str] = "trainable_tokens_"
    no_sum: ClassVar[str | None] = "its adapters are whole rows, not updates of them"
    layer_class = TokenRows
    _plan: RowPlan

    def select(self, config: TrainableTokensConfig) -> list[tuple[str, nn.Module]]:
        """See `LayerTuner.select`."""
        if config.target_modules is None:
            config.target_modules = input_embeddings(self.model)
        self.__dict__["_plan"] = RowPlan(_targets(self.model, config), TokenRows, self._layers)
        return self._plan.places

    def wrap(self, path: str, module: nn.Module, config: TrainableTokensConfig) -> AdapterLayer:
        """See `LayerTuner.wrap`."""
        return self._plan.wrap(path, module)

    def add_to_layer(
        self, layer: AdapterLayer, path: str, adapter_name: str, config: TrainableTokensConfig
    ) -> None:
        """See `LayerTuner.add_to_layer`."""
        self._plan.add(layer, path, adapter_name, init_weights=config.init_weights)

    @classmethod
    def terms_over(
        cls, base: BaseLayers, config: TrainableTokensConfig, tensors: Mapping[str, Tensor]
    ) -> Terms:
        """See `LayerTuner.terms_over`."""
        rows, others = rows_in_file(tensors)
        rest = {name.removeprefix(FILE_PREFIX): tensor for name, tensor in others.items()}
        return joined(
            [file_row_terms(base, _targets(base.model, config), rows), saved_terms(base, config, rest)]
        )


def _targets(model: nn.Module, config: Any) -> list[RowTarget]:
    names = config.target_modules or input_embeddings(model)
    paths = [path for path, _ in candidates(model)]
    wanted = [path for path in paths if matches(path, names)]
    if not wanted:
        given = [names] if isinstance(names, str) else sorted(names)
        report(f"target_modules names {given}, none of them a module. {nearest(given, paths)}", saved=False)
    return row_targets(
        model, dict.fromkeys(wanted, config.token_indices), "token_indices", saved=config.was_saved
    )


register(
    Method(
        "trainable-tokens",
        PeftType.TRAINABLE_TOKENS,
        TrainableTokensConfig,
        TrainableTokensModel,
        in_peft=True,
    )
)
