"""Which parameters `target_parameters` names, and where their wrappers are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from manytune.errors import ConfigError
from manytune.methods.lora.config import LoraConfig
from manytune.methods.lora.parameters import WITHIN, ParamWrapper
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.targets import Selection, base_of, candidates, matches
from manytune.methods.tuners.unmatched import nearest, report


def parameter_keys(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Every parameter that may be targeted, as (path of its layer, name there)."""
    for path, module in candidates(model):
        for name, parameter in base_of(module)._parameters.items():
            if parameter is not None:
                yield path, name


def select_parameters(model: nn.Module, config: LoraConfig) -> list[tuple[str, str]]:
    """The parameters that `target_parameters` names, as (path of their layer, name there), in the model's order.

    Raises:
        UnmatchedError: An entry matches nothing, and the options aren't a saved adapter's.
        ConfigError: An entry names a parameter that the model itself holds; or reaches into layers that other options
            leave out, which concern modules only.
    """
    entries = sorted(config.target_parameters or ())
    everything = list(parameter_keys(model)) if entries else []
    found: set[tuple[str, str]] = set()
    for entry in entries:
        own = [(path, name) for path, name in everything if matches(f"{path}.{name}", [entry])]
        found.update(own)
        if not own:
            _report_unmatched(model, entry, [f"{path}.{name}" for path, name in everything], config)
    if not config.was_saved:
        _refuse_beyond(Selection.of(config, ()), found)
    return [place for place in everything if place in found]


def _report_unmatched(model: nn.Module, entry: str, keys: list[str], config: LoraConfig) -> None:
    if entry in model._parameters:
        raise ConfigError(
            f"target_parameters: {entry!r} is a parameter of the model itself, which has no layer to put LoRA around."
        )
    modules = [path for path, _ in candidates(model) if matches(path, [entry])]
    hint = f"{modules[0]} is a module; name those in target_modules. " if modules else ""
    report(
        f"target_parameters: {entry!r} names no parameter of the model. "
        f"{hint}{nearest([entry], keys, 'Its parameters')}",
        saved=config.was_saved,
    )


def _refuse_beyond(selection: Selection, found: Iterable[tuple[str, str]]) -> None:
    for path, name in sorted(found):
        if keeps_parameter(selection, path, name):
            continue
        option = "exclude_modules" if selection.in_layers(path) else "layers_to_transform"
        raise ConfigError(
            f"target_parameters names {path}.{name}, which {option} would leave out, and that option concerns modules "
            "only. Name the parameters in full, such as 'layers.0.mlp.experts.down_proj'."
        )


def keeps_parameter(selection: Selection, path: str, name: str) -> bool:
    """Whether a selection leaves in the parameter of a layer, and the layer."""
    return selection.keeps(f"{path}.{name}") and not (selection.exclude and matches(path, selection.exclude))


def wrappers_for(
    model: nn.Module, places: Sequence[tuple[str, str]]
) -> tuple[list[tuple[str, nn.Module]], dict[str, str]]:
    """Where the wrappers of some parameters are, or are to be.

    A layer's first wrapper lies around all others. As in HF PEFT that is the one for its last parameter; wrappers that
    come later lie within those that are there.

    Args:
        model: The model.
        places: See `select_parameters`.

    Returns:
        Paths, in the parameters' order, with what is there or is to be wrapped; and the names of the parameters of
        those to be made.

    Raises:
        ConfigError: The layer carries adapters of another kind.
    """
    by_layer: dict[str, list[str]] = {}
    for path, name in places:
        by_layer.setdefault(path, []).append(name)
    targets: list[tuple[str, nn.Module]] = []
    new: dict[str, str] = {}
    for path, names in by_layer.items():
        module = model.get_submodule(path)
        if isinstance(module, AdapterLayer) and not isinstance(module, ParamWrapper):
            raise _adapted_otherwise(path, names[0])
        present = list(module.nested()) if isinstance(module, ParamWrapper) else []
        depth = {wrapper.parameter_name: depth for depth, wrapper in enumerate(present)}
        missing = [name for name in reversed(names) if name not in depth]
        depth |= {name: len(present) + i for i, name in enumerate(missing)}
        for name in names:
            at = path + WITHIN * depth[name]
            targets.append((at, present[depth[name]] if name not in missing else base_of(module)))
            if name in missing:
                new[at] = name
    return targets, new


def refuse_both(chosen: Iterable[tuple[str, nn.Module]], places: Iterable[tuple[str, str]]) -> None:
    """Refuse a layer that is adapted as a module and by its parameters.

    Raises:
        ConfigError: There is one.
    """
    layers = {path: name for path, name in places}
    for path, module in chosen:
        if path in layers:
            raise _adapted_otherwise(path, layers[path])
        if isinstance(module, ParamWrapper):
            raise ConfigError(
                f"Target module {path}: another adapter adapts its {module.parameter_name} with target_parameters. "
                f"Name {path}.{module.parameter_name} there, too."
            )


def _adapted_otherwise(path: str, name: str) -> ConfigError:
    return ConfigError(
        f"target_parameters names {path}.{name}, and target_modules names {path}, for this adapter or another one: a "
        "layer is adapted in one way. Leave it out of one of the two (target_modules=[] adapts parameters only)."
    )
