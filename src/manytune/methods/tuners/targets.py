"""Which modules of a model a configuration names.

A string is a regular expression that must match a module's whole path; a list holds paths or path endings;
`"all-linear"` means every linear layer but the output head; nothing at all means the attention projections
that are usual for the architecture. Every way of matching nothing is an error, down to a single entry of a
list; see `unmatched.py`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import nn
from transformers.pytorch_utils import Conv1D

from manytune.errors import ConfigError, NoMatchingPeftModuleError, PeftWarning
from manytune.methods.config import PeftConfig
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base_layers import unwrapped
from manytune.methods.tuners.names import endings, ends_in, lists_around, shortest_names, shown
from manytune.methods.tuners.patterns import fullmatch, match
from manytune.methods.tuners.saved_modules import ModulesToSaveWrapper
from manytune.methods.tuners.task_heads import head_names
from manytune.methods.tuners.unmatched import check_layers, nearest, pattern_matches, report
from manytune.methods.tuners.usual_targets import ALL_LINEAR as ALL_LINEAR
from manytune.methods.tuners.usual_targets import ATTENTION_PROJECTIONS


@dataclass(frozen=True)
class Selection:
    """What a configuration asks for, in the terms of one model.

    Attributes:
        names: A regular expression, or paths and path endings.
        exclude: The same, for modules to leave out.
        layers: Layer indices to keep; None or none keeps all.
        layers_pattern: Names of the module list whose index counts; by default the first number in the path.
        saved: Whether a saved adapter asks for it: what matches nothing is left over then, see `unmatched.py`.
        option: What the option is called that holds the names.
        given: Whether a user gave the names, rather than a table or `"all-linear"`.
    """

    names: str | Collection[str]
    exclude: str | Collection[str] | None = None
    layers: Collection[int] | None = None
    layers_pattern: Sequence[str] = ()
    saved: bool = False
    option: str = "target_modules"
    given: bool = False

    @classmethod
    def of(
        cls, config: PeftConfig, names: str | Collection[str], *, given: bool = False, **options: Any
    ) -> Self:
        """Names, narrowed down by what a configuration says about exclusions and layers."""
        layers = getattr(config, "layers_to_transform", None)
        pattern = getattr(config, "layers_pattern", None)
        exclude = getattr(config, "exclude_modules", None)
        return cls(
            names if isinstance(names, str) else frozenset(names),
            exclude=exclude if exclude is None or isinstance(exclude, str) else frozenset(exclude),
            layers=[layers] if isinstance(layers, int) else layers,
            layers_pattern=[pattern] if isinstance(pattern, str) else pattern or (),
            saved=config.was_saved,
            given=given,
            **options,
        )

    def keeps(self, path: str) -> bool:
        """Whether a module or parameter that the names name is among the layers, and not excluded."""
        return self.in_layers(path) and not (self.exclude and matches(path, self.exclude))

    def in_layers(self, path: str) -> bool:
        """Whether a path is among the layers."""
        return not self.layers or layer_index(path, self.layers_pattern) in self.layers


def has_default(model: nn.Module, usual: Mapping[str, Any]) -> bool:
    """Whether a table has the architecture of a model."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    return isinstance(model_type, str) and model_type in usual


def default_targets(
    model: nn.Module, usual: Mapping[str, Sequence[Any]] = ATTENTION_PROJECTIONS
) -> Sequence[Any]:
    """The modules that are usual for the model's architecture: its attention projections, or those of another table.

    Raises:
        ConfigError: The architecture isn't known, or the model isn't one of transformers'.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if not has_default(model, usual):
        linear = minimal_names(model, [path for path, module in candidates(model) if is_linear(module)])
        raise ConfigError(
            f"Please specify `target_modules` in `peft_config`: there is no default for model type {model_type!r}. "
            f"The model's linear layers are: {', '.join(sorted(linear)) or 'none'}."
        )
    return usual[str(model_type)]


def all_linear_targets(model: nn.Module, task_type: str | None = None) -> set[str]:
    """Names of every linear layer but the output head (and the classifier head), as short as they can be.

    The output projection within `torch.nn.MultiheadAttention`, which is never called, isn't one of them.

    Raises:
        NoMatchingPeftModuleError: The model has none.
    """
    get_output = getattr(model, "get_output_embeddings", None)
    output = get_output() if callable(get_output) else None
    head = unwrapped(output) if isinstance(output, nn.Module) else None
    heads = head_names(model, task_type)
    everything = list(candidates(model))
    attentions = {path for path, module in everything if isinstance(base_of(module), nn.MultiheadAttention)}
    wanted = [
        path
        for path, module in everything
        if is_linear(module)
        and unwrapped(module) is not head
        and not ends_in(path, heads)
        and path.rpartition(".")[0] not in attentions
    ]
    if not wanted:
        raise NoMatchingPeftModuleError(
            "target_modules='all-linear', but the model has no linear layers to adapt."
        )
    return minimal_names(model, wanted)


def expand_targets(model: nn.Module, config: Any, usual: Mapping[str, Sequence[Any]]) -> bool:
    """Let `target_modules` hold names: those that are usual for the architecture, or every linear layer's.

    Returns:
        Whether it held names before.

    Raises:
        ConfigError: The architecture isn't known.
        NoMatchingPeftModuleError: The model has no linear layers.
    """
    if config.target_modules is None:
        config.target_modules = present(model, default_targets(model, usual))
        return False
    if is_all_linear(config.target_modules):
        config.target_modules = all_linear_targets(model, config.task_type)
        return False
    return True


def is_all_linear(targets: object) -> bool:
    """Whether `target_modules` says `"all-linear"`."""
    return isinstance(targets, str) and targets.lower() == ALL_LINEAR


def present(model: nn.Module, usual: Sequence[str]) -> set[str]:
    """Those of an architecture's usual modules that a model has, since variants lack some; all if it has none."""
    paths = [path for path, _ in candidates(model)]
    return {name for name in usual if any(matches(path, [name]) for path in paths)} or set(usual)


def select(model: nn.Module, selection: Selection) -> list[tuple[str, nn.Module]]:
    """The modules that a selection names, in the model's order, as (path, module).

    Raises:
        NoMatchingPeftModuleError: Nothing matched, or everything was left out.
        UnmatchedError: One of several names, indices or exclusions matches nothing.
    """
    everything = list(candidates(model))
    paths = [path for path, _ in everything]
    matching = [(path, module) for path, module in everything if matches(path, selection.names)]
    if not isinstance(selection.names, str):
        _check_entries(selection, paths)
    kept = [(path, module) for path, module in matching if selection.keeps(path)]
    excluded = [path for path, _ in matching if selection.exclude and matches(path, selection.exclude)]
    if not kept:
        _refuse_empty(selection, len(matching), len(excluded), paths)
    _check_layers(selection, [path for path, _ in matching])
    _check_entries_in_layers(selection, paths)
    _check_exclusions(selection, paths, excluded)
    return kept


def candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that may be targeted, by path: not the insides of adapter layers, nor of modules trained in full."""
    stack: list[tuple[str, nn.Module]] = [("", model)]
    while stack:
        path, module = stack.pop()
        if path:
            yield path, module
        if isinstance(module, (AdapterLayer, ModulesToSaveWrapper)):
            continue
        dot = f"{path}." if path else ""
        children = [(dot + name, child) for name, child in module._modules.items() if child is not None]
        stack.extend(reversed(children))


def matches(path: str, names: str | Collection[str]) -> bool:
    """Whether a module's path is named by a regular expression, or by a list of paths and path endings."""
    if isinstance(names, str):
        return fullmatch(names, path)
    return any(ending in names for ending in endings(path))


def layer_index(path: str, patterns: Sequence[str] = ()) -> int | None:
    """The index of the layer that a module belongs to: the number after a pattern, or the first number in its path."""
    if patterns:
        for pattern in patterns:
            group = match(rf".*\.?{pattern}\.(\d+)(?:\.|$)", path)
            if group is not None:
                return int(group(1))
        return None
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def is_linear(module: nn.Module) -> bool:
    """Whether a module, or the base layer under its adapters, is a linear layer."""
    return isinstance(base_of(module), (nn.Linear, Conv1D))


def base_of(module: nn.Module) -> nn.Module:
    """The base's own layer: what lies under the adapters, or the module itself."""
    return module.get_base_layer() if isinstance(module, AdapterLayer) else module


def first_match(path: str, patterns: dict[str, float]) -> str | None:
    """The first key of a rank or alpha pattern that names a module: a path ending, or an expression that ends there."""
    return next((key for key in patterns if pattern_matches(key, path)), None)


def _check_entries(selection: Selection, paths: Sequence[str]) -> None:
    there = {ending for path in paths for ending in endings(path)}
    unmatched = sorted(name for name in selection.names if name not in there)
    if unmatched:
        # If none is left there is nothing to attach, and `_refuse_empty` would say less.
        saved = selection.saved and len(unmatched) < len(selection.names)
        report(
            f"Target modules {shown(unmatched)} not found in the base model. {nearest(unmatched, paths)}",
            saved=saved,
        )


def _check_entries_in_layers(selection: Selection, paths: Sequence[str]) -> None:
    if not selection.given or not selection.layers or selection.saved:
        return
    for name in sorted(selection.names):
        own = [path for path in paths if matches(path, [name])]
        if not any(map(selection.in_layers, own)):
            report(
                f"{selection.option}: {name!r} names {', '.join(own[:3])}, and layers_to_transform="
                f"{sorted(selection.layers)} leaves it out everywhere, so it would have no effect. Leave it out of "
                f"{selection.option}, or name the layers in its entries instead.",
                saved=False,
            )


def _subject(selection: Selection) -> str:
    return "Target modules" if selection.option == "target_modules" else selection.option


def _check_layers(selection: Selection, matching: Sequence[str]) -> None:
    if not selection.layers:
        return
    for pattern in selection.layers_pattern:
        if all(layer_index(path, [pattern]) is None for path in matching):
            report(
                f"layers_pattern: no targeted module lies in a numbered list called {pattern!r}. "
                f"{nearest([pattern], lists_around(matching))}",
                saved=selection.saved,
            )
    patterns = list(selection.layers_pattern)
    check_layers(
        selection.layers,
        {layer_index(path, patterns) for path in matching},
        f"what {selection.option}={shown(selection.names)} names",
        saved=selection.saved,
        pattern=f" of layers_pattern={patterns}" if patterns else "",
    )


def _check_exclusions(selection: Selection, paths: Sequence[str], excluded: Sequence[str]) -> None:
    exclude = selection.exclude
    if not exclude:
        return
    entries = [exclude] if isinstance(exclude, str) else [[name] for name in sorted(exclude)]
    unmatched = [entry for entry in entries if not any(matches(path, entry) for path in paths)]
    if unmatched:
        names = [entry if isinstance(entry, str) else entry[0] for entry in unmatched]
        report(
            f"exclude_modules names {', '.join(map(repr, names))}, which match no module of the model, so nothing is "
            f"excluded for them. {nearest(names, paths)}",
            saved=selection.saved,
        )
    elif not excluded:
        within = [p for p in paths if matches(p, exclude) and any(q.startswith(f"{p}.") for q in paths)]
        inside = (
            f" {within[0]} isn't targeted itself, and what is in it isn't excluded with it." if within else ""
        )
        warnings.warn(
            f"You have passed exclude_modules={shown(exclude)} but no modules were excluded.{inside} "
            "Check that exclude_modules names modules that target_modules names too.",
            PeftWarning,
            stacklevel=5,
        )


def _several(names: str) -> str:
    """How several names are written, if that is what an expression was meant to be; empty if it wasn't."""
    words = [word.strip() for word in names.split(",")]
    if len(words) == 1 or not all(re.fullmatch(r"[\w.]+", word) for word in words):
        return ""
    return f"Several names are written as a list, such as [{', '.join(words)}]."


def _refuse_empty(selection: Selection, matching: int, excluded: int, paths: Sequence[str]) -> None:
    target, exclude = shown(selection.names), shown(selection.exclude)
    if matching == 0 and not isinstance(selection.names, str):
        # A list without entries: every entry that there is has matched.
        raise NoMatchingPeftModuleError(
            "No modules were targeted for adaptation: target_modules is empty. Name modules to adapt."
        )
    if matching == 0:
        raise NoMatchingPeftModuleError(
            f"{_subject(selection)} {target} not found in the base model: the expression must match a module's whole "
            f"path. {_several(str(selection.names)) or nearest([str(selection.names)], paths)}"
        )
    if excluded == matching:
        raise NoMatchingPeftModuleError(
            f"All modules were excluded: target_modules={target} names {matching} modules, and "
            f"exclude_modules={exclude} leaves out every one of them."
        )
    layers = sorted(selection.layers or ())
    pattern = f", layers_pattern={list(selection.layers_pattern)}" if selection.layers_pattern else ""
    indices = {layer_index(p, selection.layers_pattern) for p in paths if matches(p, selection.names)}
    there = ", ".join(map(str, sorted(index for index in indices if index is not None)))
    raise NoMatchingPeftModuleError(
        f"No modules were targeted for adaptation: target_modules={target} names {matching} modules, of which "
        f"exclude_modules={exclude} leaves out {excluded} and layers_to_transform={layers}{pattern} the rest. "
        f"Target modules {target} not found in the base model at those layers; those there are: {there or 'none'}."
    )


def minimal_names(model: nn.Module, wanted: Sequence[str]) -> set[str]:
    """The shortest list of names for some modules: an ending where all modules with it are wanted, else the path."""
    return shortest_names([path for path, _ in candidates(model)], wanted)


def adapter_layers(model: nn.Module) -> Iterator[tuple[str, AdapterLayer]]:
    """The adapter layers of a model, by path."""
    for path, module in model.named_modules():
        if isinstance(module, AdapterLayer):
            yield path, module
