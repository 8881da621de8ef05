"""Attaching a method that works by wrapping layers: LoRA and its relatives."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from manytune.errors import AdapterError, ConfigError, PeftWarning
from manytune.methods.config import PeftConfig
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base import Tuner
from manytune.methods.tuners.base_layers import BaseLayers
from manytune.methods.tuners.filling import fill_state
from manytune.methods.tuners.fitting import fit_to_layer
from manytune.methods.tuners.layer_merging import merge_layers, merged_in, refuse_inexact, tables_to_merge
from manytune.methods.tuners.layer_terms import by_layer, live_parts, saved_terms, with_own_tables
from manytune.methods.tuners.merging import MergeError
from manytune.methods.tuners.own_tables import Tables
from manytune.methods.tuners.quantized_layers import note_unpacked
from manytune.methods.tuners.replaced import replaced_terms
from manytune.methods.tuners.saved_modules import ModulesToSaveWrapper, kept_copies
from manytune.methods.tuners.saved_targets import saved_targets
from manytune.methods.tuners.switching import named_in_layers, written
from manytune.methods.tuners.table_terms import over_tables
from manytune.methods.tuners.terms import Terms, joined
from manytune.methods.tuners.tied import refuse_unmergeable, say_untied
from manytune.methods.tuners.walk import replace_module, replace_modules


class LayerTuner(Tuner):
    """A method whose adapters sit next to layers of the model.

    A subclass defines `select`, `wrap` and `add_to_layer`; its `layer_class` states the terms. The tuner keeps an
    index of its own layers, so that adding, loading, switching and saving costs the same however many are loaded.

    Mutates: replaces each targeted layer in its parent by an `AdapterLayer`, and each of `modules_to_save` by
    a `ModulesToSaveWrapper`; `unload` puts the originals back.
    """

    #: What the layers are; its `terms` are those of the method, which has none without.
    layer_class: ClassVar[type[AdapterLayer]] = AdapterLayer  # type: ignore[type-abstract]

    def __init__(
        self,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        *,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        # Plain dicts of modules that are registered elsewhere: an index, not a second registration.
        self.__dict__["_layers"] = {}
        self.__dict__["_saved"] = {}
        self.__dict__["_active"] = []
        # Where merged weights are written while adapters are switched.
        self.__dict__["_rooms"] = {}
        super().__init__(
            model,
            config,
            adapter_name,
            low_cpu_mem_usage=low_cpu_mem_usage,
            autocast_adapter_dtype=autocast_adapter_dtype,
        )

    _layers: dict[str, AdapterLayer]
    _saved: dict[str, ModulesToSaveWrapper]
    _active: list[str]
    _rooms: dict[str, Tensor | None]

    # -- what a subclass says

    @abstractmethod
    def select(self, config: Any) -> list[tuple[str, nn.Module]]:
        """The modules that a configuration targets, as (path, module); fills in what is inferred from the model."""

    @abstractmethod
    def wrap(self, path: str, module: nn.Module, config: Any) -> AdapterLayer:
        """A layer without adapters around a module of the base.

        Raises:
            ConfigError: The module is of a kind that can't carry this method.
        """

    @abstractmethod
    def add_to_layer(self, layer: AdapterLayer, path: str, adapter_name: str, config: Any) -> None:
        """Give one layer one adapter's parameters, initialised."""

    def check(self, adapter_name: str, config: Any) -> None:
        """Refuse an adapter that can't live next to those already there."""

    def changes_base(self, adapter_name: str) -> bool:
        """Whether layers do more than use another name when this adapter comes into use or goes out of it."""
        return any(type(layer).temporarily is not AdapterLayer.temporarily for layer in self._layers.values())

    # -- adapters

    def _carriers(self) -> dict[str, AdapterLayer | ModulesToSaveWrapper]:
        # Modules trained in full first: they may refuse two adapters at once, before a layer has switched.
        return {**self._saved, **self._layers}

    def add_adapter(
        self,
        adapter_name: str,
        config: PeftConfig,
        *,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """See `Tuner.add_adapter`."""
        self._require_new(adapter_name)
        self.check(adapter_name, config)
        targets = self.select(config)
        to_save = saved_targets(self.model, config)
        skipped = {path for path, _ in to_save}
        inside = tuple(f"{path}." for path in skipped)
        targets = [(p, m) for p, m in targets if p not in skipped and not (inside and p.startswith(inside))]
        if not targets:
            raise ConfigError(
                "No modules were targeted for adaptation: every module that target_modules names is also in "
                f"modules_to_save={getattr(config, 'modules_to_save', None)}. A module is either adapted or trained in "
                "full."
            )
        # All wrappers are made and filled before the first is put in place: an error leaves the model as it was.
        wrapped = {p: m if isinstance(m, AdapterLayer) else self.wrap(p, m, config) for p, m in targets}
        try:
            # What starts from the base's weights starts from the base's own tables.
            with self.own_tables.instead([]):
                with torch.device("meta") if low_cpu_mem_usage else nullcontext():
                    for path, layer in wrapped.items():
                        self.add_to_layer(layer, path, adapter_name, config)
                        fit_to_layer(layer, adapter_name, autocast=autocast_adapter_dtype)
                keepers = {p: kept_copies(m) for p, m in to_save}
                for keeper in keepers.values():
                    keeper.add(adapter_name, autocast=autocast_adapter_dtype)
        except BaseException:
            for layer in wrapped.values():
                layer.delete_adapter(adapter_name)
            raise
        # A layer may lie within the base layer of another one, which then comes first.
        wrapped = dict(sorted(wrapped.items(), key=lambda item: item[0].count(".base_layer")))
        new = {
            p: m for p, m in {**wrapped, **keepers}.items() if p not in self._layers and p not in self._saved
        }
        replace_modules(self.model, new)
        self._layers.update(wrapped)
        self._saved.update(keepers)
        self.peft_config[adapter_name] = config

    def delete_adapter(self, adapter_name: str) -> None:
        """See `Tuner.delete_adapter`."""
        self._require(adapter_name)
        # A layer that is merged refuses; ask all of them before any forgets.
        merged = [layer for layer in self._layers.values() if adapter_name in layer.merged_adapters]
        if merged:
            merged[0].delete_adapter(adapter_name)
        for module in self._carriers().values():
            module.delete_adapter(adapter_name)
        self.own_tables.forget(adapter_name)
        del self.peft_config[adapter_name]
        remaining = [name for name in self._active if name != adapter_name]
        if remaining != self._active:
            oldest = list(self.peft_config)[:1]
            self.set_adapter(remaining or oldest)

    def set_adapter(self, adapter_names: str | Sequence[str], inference_mode: bool = False) -> None:
        """See `Tuner.set_adapter`."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        for name in names:
            self._require(name)
        self.own_tables.check(names)
        if any(layer.merged for layer in self._layers.values()):
            warnings.warn(
                "Adapter cannot be set when the model is merged. Unmerging the model first.", PeftWarning, 3
            )
            self.unmerge_adapter()
        for module in self._carriers().values():
            module.set_adapter(names, inference_mode=inference_mode)
        self._active[:] = names
        self.own_tables.use(names if self.enabled is not False else [])

    def set_requires_grad(self, adapter_names: Sequence[str], *, requires_grad: bool = True) -> None:
        """See `Tuner.set_requires_grad`."""
        for name in adapter_names:
            self._require(name)
            for module in self._carriers().values():
                module.set_requires_grad(name, requires_grad=requires_grad)

    @contextmanager
    def switched(self, adapter_names: list[str], *, merged: bool) -> Iterator[None]:
        """See `Tuner.switched`."""
        one_by_one = any(self.changes_base(name) for name in {*adapter_names, *self._active})
        with named_in_layers(self._layers, self._saved, self._active, adapter_names, one_by_one=one_by_one):
            disabled = (merged or bool(self.own_tables)) and self.enabled is False
            with self.own_tables.instead([] if disabled else adapter_names):
                if not merged or disabled:
                    yield
                    return
                with written(
                    self._layers, adapter_names, self._rooms, partial(refuse_unmergeable, self.model)
                ):
                    yield

    @property
    def active_adapters(self) -> list[str]:
        """The adapters in use."""
        return list(self._active)

    @property
    def active_adapter(self) -> list[str]:
        """See `active_adapters`."""
        return list(self._active)

    def enable_adapters(self, *, enabled: bool) -> None:
        """See `Tuner.enable_adapters`.

        Raises:
            AdapterError: An adapter is merged in low memory, so there is no exact base to go back to.
        """
        if not enabled:
            refuse_inexact(self._layers.values())
        # Merged layers take their weights out of the tables, and put them in again.
        if enabled:
            self.own_tables.use(merged_in(self._layers.values()) or self._active)
        for module in self._carriers().values():
            module.enable_adapters(enabled)
        if not enabled:
            self.own_tables.use([])

    @property
    def enabled(self) -> bool | None:
        """See `Tuner.enabled`."""
        states = {not module.disable_adapters for module in self._carriers().values()}
        return None if len(states) > 1 else states != {False}

    def enable_adapter_layers(self) -> None:
        """Apply the adapters again."""
        self.enable_adapters(enabled=True)

    def disable_adapter_layers(self) -> None:
        """Behave exactly as the base, merged or not."""
        self.enable_adapters(enabled=False)

    # -- state

    def state(self, adapter_name: str) -> dict[str, Tensor]:
        """See `Tuner.state`."""
        self._require(adapter_name)
        return {
            f"{path}.{name}": tensor
            for path, module in self._carriers().items()
            for name, tensor in module.tensors(adapter_name).items()
        }

    def memory_name(self, adapter_name: str, key: str) -> str:
        """See `Tuner.memory_name`."""
        for path, module in self._carriers().items():
            name = key.removeprefix(f"{path}.")
            if key != name and name in module.tensors(adapter_name):
                if isinstance(module, ModulesToSaveWrapper):
                    return f"{path}.modules_to_save.{adapter_name}.{name}"
                return f"{path}.{module.memory_name(adapter_name, name)}"
        return key

    def load_state(
        self, adapter_name: str, tensors: dict[str, Tensor], *, ignore_mismatched_sizes: bool = False
    ) -> tuple[list[str], list[str]]:
        """See `Tuner.load_state`."""
        mine = self.state(adapter_name)
        return fill_state(adapter_name, mine, tensors, ignore_mismatched_sizes=ignore_mismatched_sizes)

    def bring_tables(self, adapter_name: str, tables: Tables) -> None:
        """See `Tuner.bring_tables`.

        Raises:
            AdapterError: Adapters are merged.
        """
        if merged := merged_in(self._layers.values()):
            raise AdapterError(
                f"{merged} are merged, and '{adapter_name}' brings embedding tables. Unmerge first."
            )
        super().bring_tables(adapter_name, tables)

    # -- terms

    @classmethod
    def scaling_at(cls, config: Any, path: str) -> float:
        """The factor before the update of a layer, by the options of a saved adapter; see `AdapterLayer.terms`."""
        return 1.0

    @classmethod
    def terms(cls, config: Any, tensors: Mapping[str, Tensor], model: nn.Module) -> Terms:
        """See `Tuner.terms`; a subclass says more in `terms_over`."""
        if cls.layer_class is AdapterLayer:
            return super().terms(config, tensors, model)
        base, tables, others = with_own_tables(model, config, tensors)
        return over_tables(cls.terms_over(base, config, others), base, tables)

    @classmethod
    def terms_over(cls, base: BaseLayers, config: Any, tensors: Mapping[str, Tensor]) -> Terms:
        """The terms over a base that has the adapter's own tables; each layer's part is for `layer_class` to say."""
        kind = cls.layer_class
        layers, others = by_layer(tensors, kind.adapter_layer_names)
        parts = [kind.terms(base.at(p), t, config, cls.scaling_at(config, p)) for p, t in layers.items()]
        return joined([*parts, saved_terms(base, config, others)])

    def live_terms(self, adapter_name: str) -> Terms:
        """See `Tuner.live_terms`."""
        self._require(adapter_name)
        base, config = self._base_layers(adapter_name), self.peft_config[adapter_name]
        parts = live_parts(base, self._layers, adapter_name, config)
        saved = {f"{p}.{n}": t for p, k in self._saved.items() for n, t in k.tensors(adapter_name).items()}
        found = joined([*parts, replaced_terms(base, saved, in_place=False)])
        return self._over_tables(found, adapter_name)

    # -- merging

    def merge_adapter(
        self,
        adapter_names: Sequence[str] | None = None,
        safe_merge: bool = False,
        *,
        low_memory: bool = False,
    ) -> MergeError | None:
        """See `Tuner.merge_adapter`."""
        names = list(self._active if adapter_names is None else adapter_names)
        for name in names:
            self._require(name)
        with tables_to_merge(self.own_tables, self._layers.values(), names):
            return merge_layers(self.model, self._layers.values(), names, safe_merge, low_memory=low_memory)

    def unmerge_adapter(self) -> None:
        """See `Tuner.unmerge_adapter`."""
        merged = [layer for layer in self._layers.values() if layer.merged]
        if not merged:
            warnings.warn("Already unmerged. Nothing to do.", PeftWarning, stacklevel=3)
        for layer in merged:
            layer.unmerge()
        self.own_tables.use(self._active if self.enabled is not False else [])

    def unload(self) -> nn.Module:
        """See `Tuner.unload`."""
        # The last first: a layer may lie within the base layer of one before it.
        for path, layer in reversed(self._layers.items()):
            replace_module(self.model, path, layer.detach())
        for path, keeper in self._saved.items():
            replace_module(self.model, path, keeper.original_module)
        self.own_tables.use([])
        return self._detach()

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> nn.Module:
        """See `Tuner.merge_and_unload`; `progressbar` is accepted for peft's sake: this takes well under a second."""
        names = list(self._active if adapter_names is None else adapter_names)
        for name in names:
            self._require(name)
        self.own_tables.use([*merged_in(self._layers.values()), *names])
        for layer in self._layers.values():
            layer.enable_adapters(True)
        if any(
            layer.has_adapter(name) and name not in layer.merged_adapters
            for layer in self._layers.values()
            for name in names
        ):
            self.merge_adapter(names, safe_merge)
        for path, layer in reversed(self._layers.items()):
            replace_module(self.model, path, layer.base_layer)
        for path, keeper in self._saved.items():
            mine = [name for name in names if name in keeper.modules_to_save]
            replace_module(self.model, path, keeper.trained(mine[-1]) if mine else keeper.original_module)
        say_untied(self.model)
        note_unpacked(self.model)
        return self._detach()

    def _detach(self) -> nn.Module:
        self._layers.clear()
        self._saved.clear()
        self._active.clear()
        self.own_tables.leave()
        self._rooms.clear()
        self.peft_config.clear()
        self._frozen_base.thaw()
        return self.model
