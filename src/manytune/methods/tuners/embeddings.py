"""Embedding tables of the base that travel with an adapter.

HF PEFT saves the tables of input and output embeddings along with an adapter that targets them, or whose base has got
another vocabulary: the rows of added tokens are nowhere else. Loaded, they are the adapter's own; see `own_tables.py`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from manytune.errors import CheckpointError, ConfigError, PeftWarning
from manytune.methods.config import PeftConfig
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base import Tuner
from manytune.methods.tuners.base_layers import unwrapped
from manytune.methods.tuners.filling import ShapeMismatchError
from manytune.methods.tuners.saved_modules import ModulesToSaveWrapper
from manytune.methods.tuners.targets import candidates, matches

#: Targets that bring their tables along; HF PEFT's list.
_NAMES = ("embed_tokens", "lm_head")
#: What is in HF PEFT's names between a module's path and its weight, for what has taken the module's place.
_WITHIN = {"token_adapter", "base_layer", "original_module", "modules_to_save"}
_MOST_BYTES = 16 << 20


def base_tables(model: nn.Module) -> dict[str, nn.Parameter]:
    """The tables that may travel with an adapter, by their name in the model.

    Those of its input and output embeddings, of modules that share them, and of other embeddings that carry adapters.
    """
    everything = [(path, module, unwrapped(module)) for path, module in candidates(model)]
    shared = {id(own.weight) for own in _input_and_output(model)}
    return {
        f"{path}.weight": table
        for path, module, own in everything
        if isinstance(table := own._parameters.get("weight"), nn.Parameter)
        and (id(table) in shared or (module is not own and isinstance(own, nn.Embedding)))
    }


def plain_name(name: str) -> str:
    """What a table is called in the model, by its name in a file."""
    return ".".join(part for part in name.split(".") if part not in _WITHIN)


def divided_tables(
    model: nn.Module, tensors: Mapping[str, Tensor], mine: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint's tables of the base, by their name in the model, and its other tensors.

    Args:
        model: The base, with or without adapters.
        tensors: By their names in the checkpoint, less the prefix.
        mine: The names of the adapter's own tensors.
    """
    known = base_tables(model) if tensors.keys() - set(mine) else {}
    tables: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = plain_name(name)
        if name in mine or plain not in known:
            others[name] = tensor
        elif ".modules_to_save." not in f".{name}":  # HF PEFT writes a trained module's weight a second time
            tables[plain] = tensor
    return tables, others


def load_tables(
    tuner: Tuner,
    adapter_name: str,
    tensors: Mapping[str, Tensor],
    mine: Collection[str],
    *,
    ignore_mismatched_sizes: bool = False,
) -> dict[str, Tensor]:
    """Let an adapter have the tables that a checkpoint brings, and give back the checkpoint's other tensors.

    Args:
        tuner: What attaches the adapter.
        adapter_name: The adapter.
        tensors: By their names in the checkpoint, less the tuner's prefix.
        mine: The names of the adapter's own tensors.
        ignore_mismatched_sizes: Leave out tables of another shape, rather than raise.

    Raises:
        ShapeMismatchError: A table has another shape than the base's, such as that of another vocabulary.
        CheckpointError: Two tables differ that are one in this base.
    """
    prefix = tuner.parameter_prefix
    inside = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    own = {name.removeprefix(prefix) for name in mine}
    tables, others = divided_tables(tuner.model, inside, own)
    if not tables:
        return dict(tensors)
    known = base_tables(tuner.model)
    found: dict[nn.Parameter, Tensor] = {}
    names: dict[nn.Parameter, str] = {}
    for name, table in tables.items():
        parameter = known[name]
        if table.shape != parameter.shape:
            if ignore_mismatched_sizes:
                continue
            raise ShapeMismatchError(_another_size(adapter_name, name, table, parameter))
        if parameter in found and not table.equal(found[parameter]):
            raise CheckpointError(
                f"adapter '{adapter_name}' brings two unlike tables for {names[parameter]} and {name}, which are one "
                "in this base. Load the base with tie_word_embeddings=False."
            )
        found[parameter], names[parameter] = table, name
    tuner.bring_tables(adapter_name, found)
    outside = {name: t for name, t in tensors.items() if not name.startswith(prefix)}
    return outside | {f"{prefix}{name}": tensor for name, tensor in others.items()}


def _another_size(adapter_name: str, name: str, table: Tensor, parameter: nn.Parameter) -> str:
    message = (
        f"adapter '{adapter_name}' brings its own {name}; size mismatch: the checkpoint has {tuple(table.shape)}, the "
        f"model {tuple(parameter.shape)}. "
    )
    if table.shape[1:] != parameter.shape[1:]:
        return message + "Was it trained on another base?"
    return message + (
        f"It was trained with a vocabulary of {table.shape[0]} rows. Call "
        f"model.resize_token_embeddings({table.shape[0]}) on the base before loading (adapters of another vocabulary "
        "need a base of their own), or let AutoPeftModelForCausalLM and its like do both."
    )


def saved_tables(
    tuner: Tuner, adapter_name: str, save_embedding_layers: bool | Literal["auto"]
) -> dict[str, Tensor]:
    """The tables to save with an adapter, by their name in its checkpoint, less the prefix of the model's parameters.

    Args:
        tuner: What attaches the adapter.
        adapter_name: The adapter.
        save_embedding_layers: Whether to save the input and output embeddings; `"auto"` if the adapter targets one of
            them by name or has one of its own, or if the base has another vocabulary than its configuration file says.

    Raises:
        ConfigError: `save_embedding_layers` is something else.
    """
    if save_embedding_layers not in (True, False, "auto"):
        raise ConfigError(
            f"save_embedding_layers: expected True, False or 'auto', found {save_embedding_layers!r}."
        )
    if save_embedding_layers is False:
        return {}
    known = {id(own.weight) for own in _input_and_output(tuner.model, copied=False)}
    if not known:
        if save_embedding_layers is True and not _input_and_output(tuner.model):
            warnings.warn(
                "Could not identify embedding layer(s) because the model is not a transformers model: none are saved.",
                PeftWarning,
                stacklevel=4,
            )
        return {}
    config, own = tuner.peft_config[adapter_name], tuner.own_tables.of(adapter_name)
    targeted, resized = _targets_one(config), False
    if save_embedding_layers == "auto":
        resized = _is_resized(tuner.model, config)
        wanted = resized or (targeted and not config.trains_tokens)
        if wanted:
            reason = (
                "the embedding layer has been resized during finetuning"
                if resized
                else "embedding layers found in `target_modules`"
            )
            warnings.warn(
                f"Setting `save_embedding_layers` to `True` as {reason}.", PeftWarning, stacklevel=4
            )
        elif not own:
            return {}
        else:
            known, targeted = set(), False
    return _named(tuner, adapter_name, known, only_targeted=targeted and not resized)


def _named(tuner: Tuner, adapter_name: str, known: set[int], *, only_targeted: bool) -> dict[str, Tensor]:
    """The values of some tables, and of those that an adapter has of its own."""
    mine, seen, own = (
        tuner.state(adapter_name),
        tuner.own_tables.as_seen_by(adapter_name),
        tuner.own_tables.of(adapter_name),
    )
    tables = base_tables(tuner.model)
    modules = {path: module for path, module in candidates(tuner.model) if f"{path}.weight" in tables}
    prefix = tuner.parameter_prefix
    # What full fine-tuning trains in place is among its own tensors, by one of its names.
    trained = {
        id(table)
        for name, table in tables.items()
        if f"{prefix}{name}" in mine
        and not isinstance(modules[name.removesuffix(".weight")], ModulesToSaveWrapper)
    }
    found = {}
    for name, table in tables.items():
        module = modules[name.removesuffix(".weight")]
        adapted = isinstance(module, AdapterLayer)
        if isinstance(module, ModulesToSaveWrapper) or id(table) in trained:
            continue
        if table in own or (id(table) in known and (adapted or not only_targeted)):
            key = name if not adapted else name.removesuffix("weight") + f"{module.name_of_base}.weight"
            value = module.pristine("weight") if isinstance(module, AdapterLayer) else table.data
            found[key] = seen.get(table, value)
    return _without_repeats(tuner.model, found)


def _without_repeats(model: nn.Module, tables: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tables under the names of the input and output embeddings only, not of modules between that share them."""
    usual = {id(own) for own in _input_and_output(model)}
    modules = dict(candidates(model))
    first: dict[int, str] = {}
    for name in tables:
        first.setdefault(id(unwrapped(modules[plain_name(name).removesuffix(".weight")])), name)
    named = {name: tables[name] for module, name in first.items() if module in usual}
    return named or tables


def _is_resized(model: nn.Module, config: PeftConfig) -> bool:
    """Whether a base's vocabulary is another one than its configuration file says.

    Warns:
        PeftWarning: The base was loaded from somewhere, and that file isn't there (any more).
    """
    own = getattr(model, "config", None)
    present = _vocabulary(own)
    name = config.base_model_name_or_path
    if present is None or not name:
        return False
    # A base may be called otherwise than the place that it was loaded from, as by a hub's id in place of a directory.
    places = dict.fromkeys(place for place in (getattr(own, "_name_or_path", None), name) if place)
    known = (_original_vocabulary(model, place, config.revision) for place in places)
    original = next((one for one in known if one is not None), None)
    if original is None:
        warnings.warn(
            f"No config.json of {name} was found, so whether its vocabulary was changed isn't known, and no embeddings "
            "are saved with the adapter. Pass save_embedding_layers=True if it was, and False if it wasn't.",
            PeftWarning,
            stacklevel=5,
        )
    return original is not None and original != present


def _vocabulary(config: Any) -> int | None:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "vocab_size", None)
    return found if isinstance(found, int) else None


def _original_vocabulary(model: nn.Module, name: str, revision: str | None) -> int | None:
    # Without the network: a base that came from a hub has its configuration in the cache.
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    file: Any = Path(name) / "config.json"
    if not file.is_file():
        try:
            file = try_to_load_from_cache(name, "config.json", revision=revision)
        except HFValidationError:
            return None
    if not isinstance(file, (str, Path)) or Path(file).stat().st_size > _MOST_BYTES:
        return None
    try:
        kind: Any = type(getattr(model, "config", None))
        return _vocabulary(kind.from_dict(json.loads(Path(file).read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _targets_one(config: PeftConfig) -> bool:
    targets: Any = getattr(config, "target_modules", None)
    if isinstance(targets, str):
        return any(name in targets for name in _NAMES)
    return any(matches(target, _NAMES) for target in targets or ())


def _input_and_output(model: nn.Module, *, copied: bool = True) -> list[nn.Module]:
    """A model's input and output embeddings; those of which adapters have trained copies unless told not to."""
    found: list[nn.Module] = []
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        get: Any = getattr(model, getter, None)
        module = get() if callable(get) else None
        if not isinstance(module, nn.Module) or (isinstance(module, ModulesToSaveWrapper) and not copied):
            continue
        own = unwrapped(module)
        if isinstance(own._parameters.get("weight"), nn.Parameter):
            found.append(own)
    return found
