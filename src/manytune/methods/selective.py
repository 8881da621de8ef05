"""Selective fine-tuning: some of the base's own parameters train, by name, by kind, or by layer.

    "bias"        every bias: BitFit (Ben Zaken et al., arXiv 2106.10199)
    "layernorm"   every weight and bias of a normalisation layer

An adapter holds full values of the selected tensors, in their own shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from manytune.errors import ConfigError
from manytune.methods.config import PeftConfig, PeftType
from manytune.methods.registry import Method, register
from manytune.methods.tuners.direct_tuner import UNPACKED, DirectTuner
from manytune.methods.tuners.patterns import fullmatch
from manytune.methods.tuners.quantized_layers import packed_parameters, refuse_packed
from manytune.methods.tuners.saved_targets import refuse_unsaved
from manytune.methods.tuners.targets import Selection, layer_index
from manytune.methods.tuners.unmatched import UnmatchedError, check_layers, nearest, report

BIAS, LAYERNORM = "bias", "layernorm"


@dataclass
class SelectiveConfig(PeftConfig):
    """Selective fine-tuning.

    Args:
        parameters: `"bias"`, `"layernorm"`, or another string: a regular expression for whole parameter names. Or a
            list, in which those two words keep their meaning and anything else is a part of a name between dots: a
            parameter (`q_proj.weight`), a component (`mlp`), a layer (`layers.3`).
        layers_to_transform: Indices of the layers to keep to; parameters outside the layers are left out then.
        layers_pattern: Name of the module list that those indices count, such as `layers`.
        modules_to_save: Modules that train wholly whatever is selected, such as a new head.

    Raises:
        ConfigError: No parameters are named, or `layers_pattern` comes without `layers_to_transform`.
    """

    parameters: list[str] | str = BIAS
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.SELECTIVE
        if not self.parameters:
            raise ConfigError("SelectiveConfig(parameters=...) is empty: name the parameters to train.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError(
                "When `layers_pattern` is specified, `layers_to_transform` must also be specified."
            )


class SelectiveModel(DirectTuner):
    """Selective fine-tuning attached to a model; see `SelectiveConfig`."""

    def select(self, config: SelectiveConfig) -> dict[str, nn.Parameter]:
        """See `DirectTuner.select`.

        Raises:
            UnmatchedError: An entry of an option names nothing, or no layer is left.
            ConfigError: It names a weight that the base keeps packed.
        """
        entries = [config.parameters] if isinstance(config.parameters, str) else list(config.parameters)
        expression = isinstance(config.parameters, str) and config.parameters not in (BIAS, LAYERNORM)
        packed = packed_parameters(self.model)
        everything = {n: p for n, p in self.model.named_parameters() if p.is_floating_point() or n in packed}
        norms = _normalisations(self.model)
        chosen: set[str] = set()
        for entry in entries:
            found = {n for n in everything if _names(entry, n, norms, expression=expression)}
            if not found:
                parts = {part for name in everything for part in name.split(".")}
                report(
                    f"parameters: {entry!r} names no parameter of the model. Its parameters are called, for example, "
                    f"{', '.join(list(everything)[:6])}. {nearest([entry], parts)}",
                    saved=config.was_saved and len(entries) > 1,
                )
            chosen |= found
        selection = Selection.of(config, ())
        in_layers = {name for name in chosen if selection.in_layers(name)}
        if not in_layers:
            raise UnmatchedError(
                f"parameters={config.parameters!r} names {len(chosen)} parameters, none of them in "
                f"layers_to_transform={config.layers_to_transform!r}."
            )
        if selection.layers:
            indices = {layer_index(name, selection.layers_pattern) for name in chosen}
            check_layers(selection.layers, indices, "what parameters names", saved=config.was_saved)
        saving = {m: {n for n in everything if _has_part(n, m)} for m in config.modules_to_save or ()}
        refuse_unsaved(self.model, config, known=[module for module, found in saving.items() if found])
        in_layers = in_layers.union(*saving.values())
        chosen_packed = {name: library for name, library in packed.items() if name in in_layers}
        refuse_packed(chosen_packed, f"parameters={config.parameters!r}", UNPACKED)
        return {name: parameter for name, parameter in everything.items() if name in in_layers}


def _names(entry: str, name: str, norms: set[str], *, expression: bool) -> bool:
    if entry == BIAS:
        return name.rpartition(".")[2] == "bias"
    if entry == LAYERNORM:
        return name.rpartition(".")[0] in norms
    return fullmatch(entry, name) if expression else _has_part(name, entry)


def _has_part(name: str, part: str) -> bool:
    return f".{part}." in f".{name}."


def _normalisations(model: nn.Module) -> set[str]:
    """Paths of the normalisation layers; each library has classes of its own, which all are called so."""
    known = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    return {
        path
        for path, module in model.named_modules()
        if isinstance(module, known) or type(module).__name__.endswith(("LayerNorm", "RMSNorm"))
    }


register(Method("selective", PeftType.SELECTIVE, SelectiveConfig, SelectiveModel))
