"""Which modules of a model a configuration names.

A string is a regular expression that must match a module's whole path; a list holds paths or path endings;
`"all-linear"` means every linear layer but the output head; nothing at all means the attention projections
that are usual for the architecture. Every way of matching nothing is an error, down to a single entry of a
list.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from manytune.errors import ConfigError, NoMatchingPeftModuleError, PeftWarning
from manytune.methods.config import TaskType
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.saved_modules import ModulesToSaveWrapper

ALL_LINEAR = "all-linear"

_Q_V = ("q_proj", "v_proj")
_QUERY_VALUE = ("query", "value")
_FUSED_QKV = ("query_key_value",)

#: The self-attention projections that the LoRA paper adapts (query and value, or the fused one), by
#: `config.model_type`.
ATTENTION_PROJECTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("t5", "mt5", "umt5"), ("q", "v")),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ("c_attn",)),
    **dict.fromkeys(("bloom", "gpt_neox", "falcon", "chatglm", "RefinedWeb", "RefinedWebModel"), _FUSED_QKV),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "layoutlm", "vit"), _QUERY_VALUE),
    **dict.fromkeys(("bart", "opt", "gptj", "gpt_neo", "llama", "llama4", "mistral", "mixtral"), _Q_V),
    **dict.fromkeys(
        ("gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "stablelm", "smollm3", "olmo2"), _Q_V
    ),
    "deberta-v2": ("query_proj", "value_proj"),
    "deberta": ("in_proj",),
    "mpt": ("Wqkv",),
    "codegen": ("qkv_proj",),
    "phi3": ("qkv_proj",),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
    "distilbert": ("q_lin", "v_lin"),
}

#: Names of the trainable head that a task's model classes have.
TASK_HEADS: dict[str, tuple[str, ...]] = {
    TaskType.SEQ_CLS: ("classifier", "score"),
    TaskType.TOKEN_CLS: ("classifier", "score"),
    TaskType.QUESTION_ANS: ("qa_outputs",),
}


@dataclass(frozen=True)
class Selection:
    """What a configuration asks for, in the terms of one model.

    Attributes:
        names: A regular expression, or paths and path endings.
        exclude: The same, for modules to leave out.
        layers: Layer indices to keep; None keeps all.
        layers_pattern: Names of the module list whose index counts; by default the first number in the path.
    """

    names: str | Collection[str]
    exclude: str | Collection[str] | None = None
    layers: Collection[int] | None = None
    layers_pattern: Sequence[str] = ()


def default_targets(
    model: nn.Module, usual: Mapping[str, Sequence[Any]] = ATTENTION_PROJECTIONS
) -> Sequence[Any]:
    """The modules that are usual for the model's architecture: its attention projections, or those of another table.

    Raises:
        ConfigError: The architecture isn't known, or the model isn't one of transformers'.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(model_type, str) or model_type not in usual:
        linear = _minimal_names(model, [path for path, module in candidates(model) if is_linear(module)])
        raise ConfigError(
            f"Please specify `target_modules` in `peft_config`: there is no default for model type {model_type!r}. "
            f"The model's linear layers are: {', '.join(sorted(linear)) or 'none'}."
        )
    return usual[model_type]


def all_linear_targets(model: nn.Module, task_type: str | None = None) -> set[str]:
    """Names of every linear layer but the output head (and the classifier head), as short as they can be.

    The output projection within `torch.nn.MultiheadAttention`, which is never called, isn't one of them.

    Raises:
        NoMatchingPeftModuleError: The model has none.
    """
    get_output = getattr(model, "get_output_embeddings", None)
    head = get_output() if callable(get_output) else None
    heads = TASK_HEADS.get(task_type or "", ())
    everything = list(candidates(model))
    attentions = {path for path, module in everything if isinstance(base_of(module), nn.MultiheadAttention)}
    wanted = [
        path
        for path, module in everything
        if is_linear(module)
        and base_of(module) is not head
        and not any(matches(path, [h]) for h in heads)
        and path.rpartition(".")[0] not in attentions
    ]
    if not wanted:
        raise NoMatchingPeftModuleError(
            "target_modules='all-linear', but the model has no linear layers to adapt."
        )
    return _minimal_names(model, wanted)


def select(model: nn.Module, selection: Selection) -> list[tuple[str, nn.Module]]:
    """The modules that a selection names, in the model's order, as (path, module).

    Raises:
        NoMatchingPeftModuleError: Nothing matched, an entry of the list matched nothing, or everything was
            left out.
    """
    everything = list(candidates(model))
    matching = [(path, module) for path, module in everything if matches(path, selection.names)]
    if not isinstance(selection.names, str):
        _refuse_unmatched_entries(selection.names, [path for path, _ in everything])
    kept, excluded = [], 0
    for path, module in matching:
        if selection.exclude is not None and matches(path, selection.exclude):
            excluded += 1
        elif _in_layers(path, selection):
            kept.append((path, module))
    if not kept:
        _refuse_empty(selection, len(matching), excluded, [path for path, _ in everything])
    if selection.exclude and not excluded:
        warnings.warn(
            f"You have passed exclude_modules={_shown(selection.exclude)} but no modules were excluded. "
            "Check that exclude_modules names modules that target_modules names too.",
            PeftWarning,
            stacklevel=4,
        )
    return kept


def warn_of_unsaved(model: nn.Module, names: Collection[str], task_type: str | None) -> None:
    """Name the entries of `modules_to_save` that match nothing; a task's usual heads needn't all be there."""
    paths = [path for path, _ in candidates(model)] if names else []
    heads = TASK_HEADS.get(task_type or "", ())
    unmatched = [name for name in names if name not in heads and not any(matches(p, [name]) for p in paths)]
    if unmatched:
        warnings.warn(
            f"modules_to_save names {unmatched}, which match no module of the model, so nothing is trained or saved "
            f"for them. {_hint(unmatched, paths)}",
            PeftWarning,
            stacklevel=4,
        )


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
        return re.fullmatch(names, path) is not None
    return path in names or any(path.endswith(f".{name}") for name in names)


def layer_index(path: str, patterns: Sequence[str] = ()) -> int | None:
    """The index of the layer that a module belongs to: the number after a pattern, or the first number in its path."""
    if patterns:
        for pattern in patterns:
            found = re.match(rf".*\.?{pattern}\.(\d+)(?:\.|$)", path)
            if found:
                return int(found.group(1))
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
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", path)), None)


def _in_layers(path: str, selection: Selection) -> bool:
    if selection.layers is None:
        return True
    return layer_index(path, selection.layers_pattern) in selection.layers


def _refuse_unmatched_entries(names: Iterable[str], paths: Sequence[str]) -> None:
    unmatched = sorted(name for name in names if not any(matches(path, [name]) for path in paths))
    if unmatched:
        raise NoMatchingPeftModuleError(
            f"Target modules {unmatched} not found in the base model. {_hint(unmatched, paths)}"
        )


def _refuse_empty(selection: Selection, matching: int, excluded: int, paths: Sequence[str]) -> None:
    target, exclude = _shown(selection.names), _shown(selection.exclude)
    if matching == 0 and not isinstance(selection.names, str):
        # A list without entries: every entry that there is has matched.
        raise NoMatchingPeftModuleError(
            "No modules were targeted for adaptation: target_modules is empty. Name modules to adapt."
        )
    if matching == 0:
        raise NoMatchingPeftModuleError(
            f"Target modules {target} not found in the base model: the expression must match a module's whole path. "
            f"{_hint([str(selection.names)], paths)}"
        )
    if excluded == matching:
        raise NoMatchingPeftModuleError(
            f"All modules were excluded: target_modules={target} names {matching} modules, and "
            f"exclude_modules={exclude} leaves out every one of them."
        )
    layers = sorted(selection.layers or ())
    pattern = f", layers_pattern={list(selection.layers_pattern)}" if selection.layers_pattern else ""
    raise NoMatchingPeftModuleError(
        f"No modules were targeted for adaptation: target_modules={target} names {matching} modules, of which "
        f"exclude_modules={exclude} leaves out {excluded} and layers_to_transform={layers}{pattern} the rest. "
        f"Target modules {target} not found in the base model at those layers."
    )


def _hint(names: Sequence[str], paths: Sequence[str]) -> str:
    endings = sorted({path.rsplit(".", 1)[-1] for path in paths} - {str(i) for i in range(1000)})
    close = [
        match for name in names for match in difflib.get_close_matches(name.rsplit(".", 1)[-1], endings, n=2)
    ]
    if close:
        return f"Did you mean {', '.join(repr(name) for name in dict.fromkeys(close))}?"
    return f"The model's modules end in: {', '.join(endings[:40])}."


def _minimal_names(model: nn.Module, wanted: Sequence[str]) -> set[str]:
    """The shortest list of names for some modules: an ending where all modules with it are wanted, else the path."""
    chosen = set(wanted)
    by_ending: dict[str, list[str]] = {}
    for path, _ in candidates(model):
        by_ending.setdefault(path.rsplit(".", 1)[-1], []).append(path)
    names: set[str] = set()
    for path in wanted:
        ending = path.rsplit(".", 1)[-1]
        whole = not ending.isdigit() and all(other in chosen for other in by_ending[ending])
        names.add(ending if whole else path)
    return names


def _shown(names: str | Collection[str] | None) -> str:
    return repr(names) if names is None or isinstance(names, str) else repr(sorted(names))


def adapter_layers(model: nn.Module) -> Iterator[tuple[str, AdapterLayer]]:
    """The adapter layers of a model, by path."""
    for path, module in model.named_modules():
        if isinstance(module, AdapterLayer):
            yield path, module
