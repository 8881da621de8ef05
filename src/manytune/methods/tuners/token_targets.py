"""Which layers have rows of their own for an adapter's tokens: embeddings that are named, and what is tied to them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from manytune.errors import ConfigError
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base_layers import BaseLayers, unwrapped
from manytune.methods.tuners.quantized_layers import quantization_backend
from manytune.methods.tuners.targets import candidates, matches
from manytune.methods.tuners.terms import FILE_PREFIX, Terms, TermsError, joined
from manytune.methods.tuners.token_rows import ROWS, TokenRows, row_terms
from manytune.methods.tuners.unmatched import nearest, report


@dataclass(frozen=True)
class RowTarget:
    """One layer with rows of its own.

    Attributes:
        path: Where it is.
        module: What is there, with or without adapters.
        indices: The tokens.
        leader: Path of the embedding whose rows it shares; None if it has rows itself.
    """

    path: str
    module: nn.Module
    indices: tuple[int, ...]
    leader: str | None = None


def input_embeddings(model: nn.Module) -> str:
    """The path of a model's input embeddings; `embed_tokens` if it doesn't say."""
    get: Any = getattr(model, "get_input_embeddings", None)
    found = get() if callable(get) else None
    own = unwrapped(found) if isinstance(found, nn.Module) else None
    return next((path for path, module in candidates(model) if unwrapped(module) is own), "embed_tokens")


def row_targets(
    model: nn.Module, wanted: Mapping[str, Sequence[int]], option: str, *, saved: bool
) -> list[RowTarget]:
    """The layers that have rows of their own; an embedding comes before what is tied to it.

    Modules that share the weight of the model's input embeddings follow these, unless they are named with other tokens.

    Args:
        model: The model, with or without adapters.
        wanted: Tokens by path, or path ending, of their module.
        option: What asks for it, for messages.
        saved: Whether the options are a saved adapter's.

    Raises:
        ConfigError: A module can't have rows, or a token isn't in its table.
        UnmatchedError: A name matches nothing.
    """
    everything = dict(candidates(model))
    found: dict[str, RowTarget] = {}
    for name, indices in wanted.items():
        own = [path for path in everything if matches(path, [name])]
        if not own:
            report(
                f"{option}: {name!r} names no module of the model. {nearest([name], list(everything))}",
                saved=saved and len(wanted) > 1,
            )
        for path in own:
            _check(path, everything[path], indices, option)
            found[path] = RowTarget(path, everything[path], tuple(indices))
    leader = found.get(input_embeddings(model))
    if leader is None:
        return list(found.values())
    table = unwrapped(leader.module)._parameters["weight"]
    tied = {
        path: RowTarget(path, module, leader.indices, leader.path)
        for path, module in everything.items()
        if path != leader.path and unwrapped(module)._parameters.get("weight") is table
    }
    same = {path: t for path, t in tied.items() if path not in found or found[path].indices == t.indices}
    return [
        leader,
        *(t for path, t in found.items() if path != leader.path and path not in same),
        *same.values(),
    ]


def _check(path: str, module: nn.Module, indices: Sequence[int], option: str) -> None:
    own = unwrapped(module)
    if isinstance(module, AdapterLayer) and not isinstance(module, TokenRows):
        raise ConfigError(
            f"{option}: {path} carries adapters of another kind, and its tokens' rows would be trained twice. Leave it "
            "out of one of the two."
        )
    if not isinstance(own, (nn.Embedding, nn.Linear)) or quantization_backend(own):
        raise ConfigError(
            f"{option}: {path} is a {type(own).__name__}. Rows can be trained of torch.nn.Embedding and of an output "
            "head that is a torch.nn.Linear, not quantized."
        )
    if isinstance(own, nn.Embedding) and own.max_norm is not None:
        raise ConfigError(f"{option}: {path} renormalises the rows that it looks up (max_norm).")
    if not isinstance(indices, Collection):
        raise ConfigError(f"{option}: expected a list of tokens' ids for {path}, found {indices!r:.100}.")
    rows = own.weight.shape[0]
    wrong = [i for i in indices if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < rows]
    if wrong:
        raise ConfigError(
            f"{option}: token {wrong[0]!r} isn't in the table of {path}, which has {rows} rows, 0 to {rows - 1}. For "
            "tokens that were added to the tokenizer, call model.resize_token_embeddings(len(tokenizer)) first."
        )
    if not indices or len(set(indices)) < len(indices):
        raise ConfigError(
            f"{option}: expected each token once, and at least one, found {list(indices)[:20]}."
        )


class RowPlan:
    """What one new adapter's rows are attached with.

    Args:
        targets: As `row_targets` gives them.
        kind: The class of their layers.
        present: The adapter layers that there are already, by path.
    """

    def __init__(
        self, targets: Sequence[RowTarget], kind: type[TokenRows], present: Mapping[str, AdapterLayer]
    ) -> None:
        self._targets = {target.path: target for target in targets}
        self._kind = kind
        self._present = present
        self._made: dict[str, TokenRows] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._targets

    @property
    def places(self) -> list[tuple[str, nn.Module]]:
        """Paths and modules, as `LayerTuner.select` gives them."""
        return [(path, target.module) for path, target in self._targets.items()]

    def refuse(self, paths: Collection[str], option: str) -> None:
        """Refuse layers that another option names, too.

        Raises:
            ConfigError: There is one.
        """
        both = [path for path in self._targets if path in paths]
        if both:
            raise ConfigError(
                f"{both[0]} is named by {option} and has trainable tokens (with what is tied to it). A layer is either "
                "adapted, trained in full, or has trainable tokens: leave it out of one of the two."
            )

    def wrap(self, path: str, module: nn.Module) -> TokenRows:
        """A new layer around a module of the base."""
        leader = self._targets[path].leader
        tied = None if leader is None else self._made.get(leader) or self._present[leader]
        assert tied is None or isinstance(tied, TokenRows)
        self._made[path] = self._kind(module, tied)
        return self._made[path]

    def add(self, layer: AdapterLayer, path: str, adapter_name: str, *, init_weights: bool = True) -> None:
        """Give a layer the adapter's rows.

        Raises:
            ConfigError: The layer has rows of other adapters, and is tied otherwise.
        """
        assert isinstance(layer, TokenRows)
        target = self._targets[path]
        if layer.is_tied != (target.leader is not None):
            raise ConfigError(
                f"{path} shares the rows of the embedding with other adapters of this model and has its own with this "
                "one, or the other way round. Load it into a model of its own."
            )
        layer.add_adapter(adapter_name, target.indices, init_weights=init_weights)


def file_row_terms(base: BaseLayers, targets: Sequence[RowTarget], rows: Mapping[str, Tensor]) -> Terms:
    """The terms of the rows in an adapter's file.

    Args:
        base: The base.
        targets: As `row_targets` gives them.
        rows: By the path of their embedding, as the file has it.

    Raises:
        TermsError: The file lacks rows, has others, or they don't fit.
    """
    own = {path.removeprefix(FILE_PREFIX): tensor for path, tensor in rows.items()}
    needed = {target.path if target.leader is None else target.leader for target in targets}
    if not needed <= own.keys() or own.keys() - {target.path for target in targets}:
        raise TermsError(
            f"expected {ROWS} of {', '.join(sorted(needed))}, found those of {', '.join(sorted(own)) or 'nothing'}. Is "
            "the file whole, and are adapter_config.json's options those that it was trained with?"
        )
    return joined(
        row_terms(base.at(target.path), target.indices, own[target.leader or target.path])
        for target in targets
    )
