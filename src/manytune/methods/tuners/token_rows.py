"""Single rows of an embedding table that train, and the same rows of an output head that is tied to it.

    y = R[i] for a token of the adapter's, E[i] for any other           at the embedding
    y[t] = R[t] x + b[t] for such a token, W[t] x + b[t] for others     at the head

R (tokens × dim) holds whole rows, not differences: the base's rows of tokens that were just added are random, and
random again wherever the adapter is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from manytune.errors import AdapterError
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base_layers import BaseLayer, require_shape
from manytune.methods.tuners.terms import Factors, Terms, Update

#: What files call R.
ROWS = "trainable_tokens_delta"


class TokenRows(AdapterLayer):
    """An embedding or a linear output head, some of whose rows each adapter has of its own.

    Args:
        base_layer: `torch.nn.Embedding` or `torch.nn.Linear`.
        leader: The embedding whose rows these are, for a layer that is tied to it.

    Attributes:
        trainable_tokens_delta: R by adapter.
        token_indices: The tokens by adapter, in the order of R's rows.
    """

    adapter_layer_names: ClassVar[tuple[str, ...]] = (ROWS,)
    other_param_names: ClassVar[tuple[str, ...]] = ("token_indices",)
    additive: ClassVar[bool] = False

    def __init__(self, base_layer: nn.Module, leader: TokenRows | None = None) -> None:
        super().__init__(base_layer)
        self.is_tied = leader is not None
        self.token_indices = {} if leader is None else leader.token_indices
        self.__dict__["_places"] = {}
        self._keep_rows(nn.ParameterDict() if leader is None else leader.trainable_tokens_delta)

    is_tied: bool
    token_indices: dict[str, list[int]]
    _places: dict[str, Tensor]

    def _keep_rows(self, rows: nn.ParameterDict) -> None:
        self._modules[ROWS] = rows

    @property
    def trainable_tokens_delta(self) -> nn.ParameterDict:
        """R by adapter; the embedding's own for a layer that is tied to it."""
        return self._modules[ROWS]  # type: ignore[return-value]

    def add_adapter(self, adapter_name: str, indices: Sequence[int], *, init_weights: bool = True) -> None:
        """Add one adapter: the base's rows, or with `init_weights=False` rows from N(0, 1)."""
        if adapter_name in self.token_indices:
            return  # the embedding that this layer is tied to has them
        weight = self.base_layer.get_parameter("weight")
        rows = torch.empty(len(indices), weight.shape[1], dtype=weight.dtype)
        if not rows.is_meta and not weight.is_meta:
            if init_weights:
                rows.copy_(weight.detach()[list(indices)])
            else:
                nn.init.normal_(rows)
        self.trainable_tokens_delta[adapter_name] = nn.Parameter(rows)
        self.token_indices[adapter_name] = list(indices)

    def tensors(self, adapter_name: str) -> dict[str, nn.Parameter]:
        """See `AdapterLayer.tensors`."""
        rows = self.trainable_tokens_delta
        return {ROWS: rows[adapter_name]} if adapter_name in rows else {}

    def delete_adapter(self, adapter_name: str) -> None:
        """See `AdapterLayer.delete_adapter`."""
        super().delete_adapter(adapter_name)
        self._places.pop(adapter_name, None)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer with its active adapters; exactly the base layer if there are none.

        Args:
            x: Ids (...), or a head's input (..., dim).
            *args: Passed to the base layer.
            **kwargs: Passed to the base layer.

        Returns:
            (..., dim), or logits (..., tokens), in the base layer's dtype.
        """
        y: Tensor = self.base_layer(x, *args, **kwargs)
        live = self.live_adapters()
        self._refuse_common(live)
        for name in live:
            y = (
                self._looked_up(name, x, y)
                if isinstance(self.base_layer, nn.Embedding)
                else self._scored(name, x, y)
            )
        return y

    def _looked_up(self, name: str, ids: Tensor, y: Tensor) -> Tensor:
        rows, indices = self.trainable_tokens_delta[name], self.token_indices[name]
        places = self._places.get(name)
        if places is None or places.device != ids.device:
            places = torch.full((self.base_layer.get_parameter("weight").shape[0],), -1)
            places[indices] = torch.arange(len(indices))
            places = self._places[name] = places.to(ids.device)
        place = places[ids]
        padding: Any = self.base_layer.padding_idx
        found = functional.embedding(
            place.clamp(min=0), rows, padding_idx=indices.index(padding) if padding in indices else None
        ).to(y.dtype)
        scale = getattr(self.base_layer, "embed_scale", None)
        return torch.where(place.unsqueeze(-1) >= 0, found if scale is None else found * scale, y)

    def _scored(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        tokens = torch.tensor(self.token_indices[name], device=y.device)
        bias = None if self.bias is None else self.bias[tokens]
        scores = functional.linear(x, self.trainable_tokens_delta[name].to(x.dtype), bias)
        return y.index_copy_(
            -1, tokens, scores.to(y.dtype)
        )  # the layer's own result, which nothing else reads

    def merged_tensors(self, adapter_names: Sequence[str]) -> dict[str, Tensor]:
        """The table with the adapters' rows; nothing for a layer that shares the embedding's."""
        self._refuse_common(adapter_names)
        if self.is_tied:
            return {}
        weight = self.base_layer.get_parameter("weight").detach().clone()
        for name in adapter_names:
            weight[self.token_indices[name]] = self.trainable_tokens_delta[name].detach().to(weight)
        return {"weight": weight}

    def live_terms(self, base: BaseLayer, adapter_name: str, config: Any) -> Terms:
        """See `AdapterLayer.live_terms`."""
        rows = self.trainable_tokens_delta[adapter_name].detach()
        return row_terms(base, self.token_indices[adapter_name], rows)

    def _refuse_common(self, names: Sequence[str]) -> None:
        seen: dict[int, str] = {}
        for name in names if len(names) > 1 else ():
            for token in self.token_indices[name]:
                if seen.setdefault(token, name) != name:
                    raise AdapterError(
                        f"Adapters '{seen[token]}' and '{name}' both have a row of their own for token {token}, and "
                        "two rows don't add up. Use one of them at a time."
                    )


class RowsOfOption(TokenRows):
    """The same as an option of another method, `trainable_token_indices`; named as HF PEFT names it there."""

    carries_adapters: ClassVar[bool] = False
    name_of_base: ClassVar[str] = "token_adapter.base_layer"

    def _keep_rows(self, rows: nn.ParameterDict) -> None:
        self._modules["token_adapter"] = nn.ModuleDict({ROWS: rows})

    @property
    def trainable_tokens_delta(self) -> nn.ParameterDict:
        """See `TokenRows`."""
        return self._modules["token_adapter"]._modules[ROWS]  # type: ignore[union-attr,return-value]

    def tensors(self, adapter_name: str) -> dict[str, nn.Parameter]:
        """See `AdapterLayer.tensors`; a file has the rows once."""
        if self.is_tied:
            return {}
        return {f"token_adapter.{name}": rows for name, rows in super().tensors(adapter_name).items()}

    def memory_name(self, adapter_name: str, key: str) -> str:
        """See `AdapterLayer.memory_name`."""
        return f"{key}.{adapter_name}"


@torch.no_grad()
def row_terms(base: BaseLayer, indices: Sequence[int], rows: Tensor) -> Terms:
    """The terms of rows of their own at one layer: an update whose rank is the number of tokens.

    With P the selection of the tokens: D = P and U = (R - E[t])ᵀ at an embedding, D = R - W[t] and U = Pᵀ at a head.
    With as many tokens as the rows are long it is the whole table, which is smaller then.

    Args:
        base: The layer.
        indices: The tokens.
        rows: R.

    Raises:
        TermsError: The rows don't fit the layer.
    """
    table = base.value("weight")
    assert table is not None
    require_shape(base.path, ROWS, rows, (len(indices), table.shape[1]))
    lookup = base.is_embedding
    scale = base.embed_scale if lookup else 1.0
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if len(indices) >= table.shape[1]:
        whole = table.to(wide.device, wide.dtype, copy=True)
        whole[list(indices)] = wide
        bias = base.value("bias")
        update = Update(
            None,
            whole.t() if lookup else whole,
            scale,
            up_bias=None if bias is None else bias.to(wide.device),
            lookup=lookup,
        )
        nothing = torch.zeros(base.outputs, dtype=wide.dtype, device=wide.device)
        return Terms(updates={base.path: update}, factors={base.path: Factors(outputs=nothing)})
    difference = wide - table[list(indices)].to(wide.device, wide.dtype)
    chosen = torch.zeros(len(indices), table.shape[0], dtype=wide.dtype, device=wide.device)
    chosen[torch.arange(len(indices)), list(indices)] = 1
    down, up = (chosen, difference.t()) if lookup else (difference, chosen.t())
    return Terms(updates={base.path: Update(down, up, scale, lookup=lookup)})


def rows_in_file(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The rows in an adapter's file, by the path of their embedding as the file has it; and the other tensors."""
    rows: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        path, _, own = name.rpartition(".")
        (rows if own == ROWS else others)[path.removesuffix(".token_adapter") if own == ROWS else name] = (
            tensor
        )
    return rows, others
