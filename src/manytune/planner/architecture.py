"""A model's matrices and widths, from its config: what parameters, FLOPs, keys and values follow from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from manytune.data.nearest import did_you_mean
from manytune.data.section import kind_of
from manytune.errors import RecipeError
from manytune.methods.tuners.sizes import Matrix
from manytune.planner.families import FAMILIES, HARMLESS, Family

_LARGEST = 1 << 24  # ten times the widest layer and the largest vocabulary that anybody has published
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
_OPTIONAL = (
    *("num_key_value_heads", "head_dim", "tie_word_embeddings", "attention_bias", "mlp_bias", "enable_bias"),
    *("model_type", "num_experts_per_tok", "decoder_sparse_step", "mlp_only_layers", "word_embed_proj_dim"),
)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A decoder's sizes. Encoders, encoder-decoders and models that read images have none here.

    Attributes:
        model_type: Its family.
        family: What a layer consists of.
        layers: How many there are.
        hidden: Size of a hidden state.
        heads: Heads of queries.
        key_heads: Heads of keys and values.
        head_dim: Size of a head.
        inner: Inner size of the MLP, of one expert in a mixture.
        vocabulary: Rows of the embedding.
        matrices: The linear layers of one block.
        tied: Whether the head is the embedding.
        other_layer_parameters: Numbers of a block that are no linear layer's: norms, experts and their router.
        other_parameters: Numbers outside of blocks but embedding and head: the last norm, a table of positions.
        expert_weights: Of `other_layer_parameters`, those of experts.
        experts: How many there are; 0 for a dense model.
        experts_used: How many of them a token uses.
        unread: Keys of the config that planning doesn't know.
    """

    model_type: str
    family: Family
    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    matrices: tuple[Matrix, ...]
    tied: bool
    other_layer_parameters: int
    other_parameters: int
    expert_weights: int = 0
    experts: int = 0
    experts_used: int = 0
    unread: tuple[str, ...] = ()

    @property
    def layer_weights(self) -> int:
        """Numbers in the blocks' matrices, all experts counted."""
        return self.layers * (sum(matrix.weights for matrix in self.matrices) + self.expert_weights)

    @property
    def used_layer_weights(self) -> int:
        """Those that one token is multiplied with: W of the required FLOPs."""
        share = self.experts_used / self.experts if self.experts else 0
        return self.layers * (
            sum(matrix.weights for matrix in self.matrices) + round(self.expert_weights * share)
        )

    @property
    def head_weights(self) -> int:
        """H of the required FLOPs, tied or not."""
        return self.vocabulary * self.hidden

    @property
    def embedding_parameters(self) -> int:
        """Numbers of the embedding and of a head of its own."""
        return self.head_weights * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All numbers; tied ones once."""
        block = sum(m.weights + (m.outputs if m.bias else 0) for m in self.matrices)
        blocks = self.layers * (block + self.other_layer_parameters)
        return blocks + self.embedding_parameters + self.other_parameters

    @property
    def attention_width(self) -> int:
        """A of the required FLOPs: heads times the size of a head, summed over the layers."""
        return self.layers * self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Numbers of a token's keys in one layer: key heads · size of a head."""
        return self.key_heads * self.head_dim

    @property
    def kv_numbers(self) -> int:
        """Numbers of a token's keys and values in all layers."""
        return 2 * self.layers * self.key_width

    def named(self, names: Iterable[str]) -> tuple[Matrix, ...]:
        """The matrices of a block whose names, or their endings, are given.

        Raises:
            RecipeError: A name is none of them.
        """
        found = []
        known = [matrix.name for matrix in self.matrices]
        for name in names:
            own = [m for m in self.matrices if m.name == name or m.name.split(".")[-1] == name]
            if not own:
                raise RecipeError(
                    f"method.target_modules: {self.model_type} has no linear layer {name!r} in its blocks"
                    f"{did_you_mean(name, known) or '.'} Known: {', '.join(known)}."
                )
            found += own
        return tuple(matrix for matrix in self.matrices if matrix in found)


def architecture_of(config: Mapping[str, Any], *, where: str, strict: bool = False) -> Architecture:
    """Read a config as transformers writes it.

    Args:
        config: The content of a `config.json`.
        where: What it is called in messages.
        strict: Refuse keys that planning doesn't know, rather than list them: they were written for it.

    Raises:
        RecipeError: The family isn't known, or a size is missing or can't be one.
    """
    family, model_type = _family(config, where)
    names = dict(family.renamed)
    read = {*_SIZES, *_OPTIONAL, *names.values(), "max_position_embeddings", family.expert_size_key}
    read |= set(family.experts_keys)
    unread = sorted(str(key) for key in config if key not in read | HARMLESS)
    if unread and strict:
        raise RecipeError(
            f"{where}.{unread[0]}: planning knows no such key{did_you_mean(unread[0], read) or '.'} "
            f"Known: {', '.join(sorted(read))}."
        )
    sizes = _Sizes(config, names, where)
    hidden, layers, heads = (sizes.of(key) for key in _SIZES[:3])
    inner_key = family.expert_size_key if family.experts_keys else "intermediate_size"
    inner = sizes.of(inner_key, default=4 * hidden if model_type == "gpt2" else None)
    key_heads = heads
    if not family.fused or model_type == "phi3":
        key_heads = sizes.of("num_key_value_heads", default=heads if family.as_many_key_heads else None)
    head_dim = sizes.of("head_dim", default=family.head_dim or max(1, hidden // heads))
    _require_plain(config, hidden, where)
    if heads % key_heads:
        raise RecipeError(
            f"{where}: {heads} heads of queries can't share {key_heads} heads of keys and values evenly; expected "
            "num_attention_heads to be a multiple of num_key_value_heads."
        )
    matrices = tuple(_matrices(family, config, hidden, heads * head_dim, key_heads * head_dim, inner))
    norm = hidden * (2 if family.layer_norm else 1)
    head_norms = {"none": 0, "head": 2 * head_dim, "all": (heads + key_heads) * head_dim}[family.head_norms]
    experts_key = next(
        (key for key in family.experts_keys if key in config), "".join(family.experts_keys[:1])
    )
    experts = sizes.of(experts_key) if family.experts_keys else 0
    expert_weights = experts * 3 * hidden * inner
    positions = 0
    if family.positions is not None:
        positions = (sizes.of("max_position_embeddings") + family.positions) * hidden
    return Architecture(
        model_type=model_type,
        family=family,
        layers=layers,
        hidden=hidden,
        heads=heads,
        key_heads=key_heads,
        head_dim=head_dim,
        inner=inner,
        vocabulary=sizes.of("vocab_size"),
        matrices=matrices,
        tied=bool(config.get("tie_word_embeddings", family.tied)),
        other_layer_parameters=family.norms * norm + head_norms + expert_weights + experts * hidden,
        other_parameters=norm + positions,
        expert_weights=expert_weights,
        experts=experts,
        experts_used=sizes.of("num_experts_per_tok") if experts else 0,
        unread=tuple(unread),
    )


def _family(config: Mapping[str, Any], where: str) -> tuple[Family, str]:
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None or not isinstance(model_type, str):
        inner = config.get("text_config")
        hint = (
            " It reads more than text: plan for its text_config, written to a file of its own."
            if isinstance(inner, dict) and inner.get("model_type") in FAMILIES
            else ""
        )
        raise RecipeError(
            f"{where}: planning knows these values of model_type: {', '.join(FAMILIES)}; found "
            f"{kind_of(model_type)}{did_you_mean(str(model_type), FAMILIES) or '.'}{hint} For another decoder, give "
            "the sizes of the known one that is most like it."
        )
    return family, model_type


class _Sizes:
    """Reads whole numbers of a config."""

    def __init__(self, config: Mapping[str, Any], names: Mapping[str, str], where: str) -> None:
        self._config, self._names, self._where = config, names, where

    def of(self, key: str, *, default: int | None = None) -> int:
        """A size; `default` where the config doesn't say."""
        name = self._names.get(key, key)
        value = self._config.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
            raise RecipeError(
                f"{self._where}: {name} should be a whole number from 1 to {_LARGEST:,}, as in a config.json of "
                f"transformers; found {kind_of(value)}."
            )
        return value


def _require_plain(config: Mapping[str, Any], hidden: int, where: str) -> None:
    uneven = config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1
    if uneven or config.get("word_embed_proj_dim", hidden) not in (None, hidden):
        raise RecipeError(
            f"{where}: planning takes all layers to be of one kind, and the embedding to have the hidden size; this "
            "config has mlp_only_layers, decoder_sparse_step or word_embed_proj_dim that say otherwise."
        )


def _matrices(
    family: Family, config: Mapping[str, Any], hidden: int, width: int, key_width: int, inner: int
) -> Iterable[Matrix]:
    def biased(how: str) -> bool:
        return how == "always" or (how != "never" and bool(config.get(how, family.bias_key)))

    qkv, out = biased(family.qkv_bias), biased(family.out_bias)
    mlp = bool(config.get("mlp_bias", False)) if family.mlp_bias is None else family.mlp_bias
    names = list(family.names)
    if family.fused:
        yield Matrix(names.pop(0), hidden, width + 2 * key_width, qkv, "attention")
    else:
        for outputs in (width, key_width, key_width):
            yield Matrix(names.pop(0), hidden, outputs, qkv, "attention")
    yield Matrix(names.pop(0), width, hidden, out, "heads")
    if family.experts_keys:
        return
    if family.gated and not family.fused:
        yield Matrix(names.pop(0), hidden, inner, mlp, "mlp")
    yield Matrix(names.pop(0), hidden, inner * (2 if family.gated and family.fused else 1), mlp, "mlp")
    yield Matrix(names.pop(0), inner, hidden, mlp, "inner")
