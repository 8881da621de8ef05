"""The methods there are. Each one registers itself when its file is imported: `register(Method(...))`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from manytune.errors import ConfigError
from manytune.methods import load_methods
from manytune.methods.config import PeftConfig, register_config
from manytune.methods.outline import method_outline

if TYPE_CHECKING:
    from torch import nn

    from manytune.methods.tuners.base import Tuner
    from manytune.methods.tuners.factor_pairs import FactorPair
    from manytune.methods.tuners.terms import Adapter, Terms


@dataclass(frozen=True)
class Method:
    """One entry of the registry.

    Attributes:
        name: What a recipe calls it, such as `lora`.
        peft_type: What `adapter_config.json` calls it.
        config: Its configuration class.
        tuner: What attaches it to a model.
        in_peft: Whether HF PEFT has the method too, with the same options and tensors in its files.
        learning_rate: Its usual peak learning rate. The default is LoRA's: ten times full fine-tuning's
            ("LoRA Without Regret", 2025).
        on_packed: Whether it can train on a base whose weights are packed into fewer bits.
        on_shards: Whether it can train where each process holds a part of the weights.
        rank: The option that is its rank, if the scale of its update doesn't change with it; None for no rank.
        pairs: Finds its pairs of factors in a model, for optimizers that treat the two differently; None for a method
            that has none.
        decays: Whether its parameters do nothing at zero, so that weight decay may pull them there.
    """

    name: str
    peft_type: str
    config: type[PeftConfig]
    tuner: type[Tuner]
    in_peft: bool = False
    learning_rate: float = 1e-3
    rank: str | None = None
    on_packed: bool = True
    on_shards: bool = True
    pairs: Callable[[nn.Module], Iterable[FactorPair]] | None = None
    decays: bool = True


_METHODS: dict[str, Method] = {}


def register(method: Method) -> None:
    """Make a method known to recipes, `get_peft_model`, checkpoints, the trainer, the engine and the server.

    Raises:
        ConfigError: Another method has its name or its `peft_type` already.
    """
    for other in _METHODS.values():
        if (
            other.name == method.name or other.peft_type == method.peft_type
        ) and other.tuner.__qualname__ != (method.tuner.__qualname__):
            raise ConfigError(
                f"Can't register {method.tuner.__qualname__} as {method.name!r} ({method.peft_type}): "
                f"{other.tuner.__qualname__} is {other.name!r} ({other.peft_type}). Choose another name and peft_type."
            )
    _METHODS[method.name] = method
    register_config(method.peft_type, method.config)


def methods() -> dict[str, Method]:
    """All methods by the name that recipes use, in the order of their names, whichever was imported first."""
    load_methods()
    return dict(sorted(_METHODS.items()))


def method_of(config: PeftConfig) -> Method:
    """The method that a configuration belongs to.

    Raises:
        ConfigError: There is none of its `peft_type`.
    """
    known = methods().values()
    for method in known:
        if method.peft_type == config.peft_type:
            return method
    names = ", ".join(sorted(method.peft_type for method in known))
    raise ConfigError(
        f"Unknown method: peft_type={config.peft_type!r}. Known: {names}. A method of your own is known once its file "
        "was imported and has called register()."
    )


def factor_pairs(model: nn.Module) -> tuple[FactorPair, ...]:
    """The pairs of factors that train in a model, whatever method they belong to."""
    return tuple(pair for method in methods().values() if method.pairs for pair in method.pairs(model))


def terms_of(adapter: Adapter, model: nn.Module) -> Terms:
    """What a saved adapter does to a base, as its method states it; see `Tuner.terms`.

    Raises:
        TermsError: It can't be written in terms, or doesn't fit the base.
        ConfigError: Its method isn't known.
    """
    from manytune.methods.tuners.terms import TermsError

    if not adapter.tensors:
        raise TermsError(
            f"{adapter.config.peft_type} adapter: its file holds no tensors, so it would change nothing."
        )
    return method_of(adapter.config).tuner.terms(adapter.config, adapter.tensors, model)


def peft_config_from(name: str, **options: Any) -> PeftConfig:
    """A configuration from a recipe's words.

    Args:
        name: The method's name, such as `lora`.
        **options: Its options.

    Raises:
        ConfigError: The method or an option is unknown; the nearest known one is named.
    """
    known = methods()
    check_options(name, options, {one.name: _fields(one.config) for one in known.values()})
    return known[name].config(**options)


def method_options() -> dict[str, Collection[str]]:
    """The options of each method by the method's name, those of imported methods of one's own among them.

    Nothing is imported for it, so it takes no torch.
    """
    own = {method.name: _fields(method.config) for method in _METHODS.values()}
    return dict(sorted({**method_outline(), **own}.items()))


def check_options(name: str, options: Iterable[str], known: Mapping[str, Collection[str]]) -> None:
    """Refuse a method that there isn't, and options that a method doesn't have.

    Args:
        name: The method's name.
        options: The options' names.
        known: Those that there are, by method.

    Raises:
        ConfigError: The method or an option is unknown; the nearest known one is named.
    """
    if name not in known:
        raise ConfigError(
            f"Unknown method {name!r}.{_nearest(name, known)} Known methods: {', '.join(known)}."
        )
    unknown = sorted(set(options) - set(known[name]))
    if unknown:
        raise ConfigError(f"Method {name!r} has no option {unknown[0]!r}.{_nearest(unknown[0], known[name])}")


def _fields(config: type[PeftConfig]) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(config))


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word.casefold(), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
