"""A layer with adapters next to a frozen layer of the base, and the exact way into its weights and back.

Switching is exact. Merging computes the new weight from the pristine one, W = W0 + ΔW, and swaps it in; W0 itself is
kept aside untouched. Unmerging puts W0 back: the same storage, so the base is bit-identical after any number of
switches. The price is one copy of each targeted weight while an adapter is merged. `low_memory=True` avoids the copy:
it adds ΔW in place and later subtracts it, which rounds; the error is measured when the adapter is merged, and stated
in a warning. A quantized layer is replaced by a copy in full precision while an adapter is merged.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from manytune.errors import AdapterError
from manytune.methods.tuners.base_layers import BaseLayer, Wrapper
from manytune.methods.tuners.merged_sum import MergedSum
from manytune.methods.tuners.merging import MergeError, add_in_place, check_finite, subtract_in_place
from manytune.methods.tuners.quantized_layers import DequantizedLinear, quantization_backend
from manytune.methods.tuners.terms import INSTEAD, Terms, TermsError, Update

_PLAIN = frozenset({bool, int, str, list, dict, set})


class AdapterLayer(Wrapper):
    """A layer of the base with adapters next to it.

    A subclass names its per-adapter containers in `adapter_layer_names` (those with parameters) and
    `other_param_names` (the rest), and defines `forward`, `tensors` and `merged_tensors`.

    Args:
        base_layer: The layer of the base; it stays frozen and is never copied.

    Mutates: `merge` and `unmerge` replace the data of `base_layer`'s parameters; nothing else touches the
        base.
    """

    adapter_layer_names: ClassVar[tuple[str, ...]] = ()
    other_param_names: ClassVar[tuple[str, ...]] = ()
    #: The family's name in `repr` and status reports: `lora` in `lora.Linear`.
    kind: ClassVar[str] = ""
    #: Whether merging adds ΔW, independent of the weight it is added to.
    additive: ClassVar[bool] = True

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.training = base_layer.training
        self._modules["base_layer"] = base_layer
        self.merged_adapters: list[str] = []
        self._active_adapters: list[str] = []
        self._trainable: set[str] = set()
        self._paused: set[str] = set()
        self._disable_adapters = False
        self._pristine: dict[str, Tensor] = {}
        self.__dict__["_packed"] = None  # a quantized layer, while a plain copy is in its place
        self._low_memory = False

    _packed: nn.Module | None

    base_layer: nn.Module

    def __setattr__(self, name: str, value: Any) -> None:
        # torch asks of each value whether it is a parameter, a module or a buffer. These can't be.
        if type(value) in _PLAIN:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # -- what a subclass says

    @abstractmethod
    def tensors(self, adapter_name: str) -> dict[str, nn.Parameter]:
        """One adapter's parameters by their name in a checkpoint, such as `lora_A.weight`; empty if it has none."""

    @abstractmethod
    def merged_tensors(self, adapter_names: Sequence[str]) -> dict[str, Tensor]:
        """The present parameters of `base_layer` with these adapters written in.

        Returns:
            New tensors by parameter name (`weight`, `bias`), of the parameter's own dtype.
        """

    def merged_sum(self, adapter_names: Sequence[str]) -> MergedSum | None:
        """What `merged_tensors` gives, as a sum of products that switching writes in one pass; None if it isn't one."""
        return None

    @classmethod
    def terms(cls, base: BaseLayer, tensors: Mapping[str, Tensor], config: Any, scaling: float) -> Terms:
        """What one adapter does at one layer, in the terms of `terms.py`.

        Args:
            base: The layer of the base.
            tensors: The adapter's tensors, named as `tensors` names them; to be shared, not copied.
            config: Its options.
            scaling: The factor before its update, where the method has one.

        Raises:
            TermsError: It has no terms, or doesn't fit the layer; by default the method doesn't say.
        """
        raise TermsError(f"{cls.__module__}.{cls.__qualname__} doesn't state its terms. {INSTEAD}")

    def live_terms(self, base: BaseLayer, adapter_name: str, config: Any) -> Terms:
        """The terms of an attached adapter as it is now; see `terms`."""
        tensors = {name: parameter.detach() for name, parameter in self.tensors(adapter_name).items()}
        return self.terms(base, tensors, config, self.present_scaling(adapter_name))

    def live_update(self, adapter_name: str) -> Update | None:
        """The one update that `live_terms` has, found quickly; None where there may be more."""
        return None

    def present_scaling(self, adapter_name: str) -> float:
        """The factor before an adapter's update as it is now; 1 where the method has none."""
        scalings: Mapping[str, float] = getattr(self, "scaling", {})
        return scalings.get(adapter_name, 1.0)

    def reads_another_layer(self, adapter_name: str) -> bool:
        """Whether the adapter needs another layer's input, so that this layer can't run it by itself."""
        return False

    def is_additive(self, adapter_name: str) -> bool:
        """Whether merging this adapter adds a ΔW that doesn't depend on the weight."""
        return self.additive

    def memory_name(self, adapter_name: str, key: str) -> str:
        """The name in this layer of what `tensors` calls `key`: the adapter's name goes behind its container."""
        container, dot, rest = key.partition(".")
        return f"{container}.{adapter_name}{dot}{rest}"

    @property
    def wrapped(self) -> nn.Module:
        """See `Wrapper.wrapped`; the packed layer, also while a plain copy has its place."""
        return self.base_layer if self._packed is None else self._packed

    def pristine(self, name: str) -> Tensor:
        """See `Wrapper.pristine`: without what is merged; a merge in low memory has no such thing to give."""
        if self.merged_inexactly:
            raise AdapterError(f"{self.merged_adapters} are merged in low memory: unmerge them first.")
        return self._pristine[name] if name in self._pristine else super().pristine(name)

    @property
    def weight(self) -> Tensor:
        """The base layer's weight, with the merged adapters in it."""
        return self.base_layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.base_layer.bias  # type: ignore[return-value]

    def get_base_layer(self) -> nn.Module:
        """The layer of the base."""
        return self.base_layer

    @property
    def merged(self) -> bool:
        """Whether any adapter is written into the base layer's weights."""
        return bool(self.merged_adapters)

    @property
    def merged_inexactly(self) -> bool:
        """Whether adapters are merged in low memory, so that the base's exact weights aren't there."""
        return bool(self.merged_adapters) and self._low_memory

    @property
    def disable_adapters(self) -> bool:
        """Whether the layer behaves as the base's."""
        return self._disable_adapters

    @property
    def active_adapters(self) -> list[str]:
        """The adapters in use; may name some that this layer doesn't carry."""
        return self._active_adapters

    @property
    def active_adapter(self) -> list[str]:
        """The same as `active_adapters`."""
        return self._active_adapters

    def made(self, containers: Sequence[str]) -> Sequence[str]:
        """Those of some containers that exist; a subclass may make some of its own only when they are asked for."""
        return containers

    def _all_available_adapter_names(self) -> list[str]:
        names: dict[str, None] = {}
        for container in self.made(self.adapter_layer_names):
            names.update(dict.fromkeys(getattr(self, container).keys()))
        return sorted(names)

    def has_adapter(self, adapter_name: str) -> bool:
        """Whether this layer carries the adapter."""
        return any(adapter_name in getattr(self, name) for name in self.made(self.adapter_layer_names))

    def live_adapters(self) -> list[str]:
        """The adapters that `forward` has to apply next to the base layer: none while disabled or merged."""
        if self._disable_adapters or self.merged_adapters:
            return []
        return [name for name in self._active_adapters if self.has_adapter(name)]

    def set_adapter(self, adapter_names: str | Sequence[str], *, inference_mode: bool = False) -> None:
        """Use these adapters and no others; only they train, or nothing does with `inference_mode`."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        for name in self._trainable - set(names):
            self.set_requires_grad(name, requires_grad=False)
        training = set() if inference_mode else set(names)
        if self._disable_adapters:
            # Nothing trains until the adapters are enabled again.
            self._paused, training = training, set()
        for name in names:
            self.set_requires_grad(name, requires_grad=name in training)
        self._active_adapters = names

    @contextmanager
    def temporarily(self, adapter_names: list[str]) -> Iterator[None]:
        """Use these adapters within the context; what trains stays as it is."""
        former, self._active_adapters = self._active_adapters, adapter_names
        try:
            yield
        finally:
            self._active_adapters = former

    def set_requires_grad(self, adapter_name: str, *, requires_grad: bool = True) -> None:
        """Let one adapter's parameters train, or freeze them. Those that can't have gradients are left alone."""
        for parameter in self.tensors(adapter_name).values():
            if parameter.is_floating_point():
                parameter.requires_grad_(requires_grad)
        (self._trainable.add if requires_grad else self._trainable.discard)(adapter_name)

    def enable_adapters(self, enabled: bool) -> None:
        """Apply the adapters, or behave exactly as the base, merged or not; merged ones come back on enabling."""
        if enabled == (not self._disable_adapters):
            return
        if self.merged_adapters:
            if enabled:
                self._write(self.merged_adapters)
            else:
                self._restore(self.merged_adapters)
        self._disable_adapters = not enabled
        if enabled:
            for name in self._paused:
                self.set_requires_grad(name)
        else:
            self._paused = {name for name in self._trainable if self.has_adapter(name)}
            for name in self._paused:
                self.set_requires_grad(name, requires_grad=False)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget one adapter; no container keeps its name.

        Raises:
            AdapterError: It is merged.
        """
        if adapter_name in self.merged_adapters:
            raise AdapterError(
                f"Cannot delete adapter(s) ['{adapter_name}'] while they are merged. Please unmerge them first."
            )
        for container in self.made((*self.adapter_layer_names, *self.other_param_names)):
            mapping = getattr(self, container)
            if adapter_name in mapping:
                del mapping[adapter_name]
        self._trainable.discard(adapter_name)
        self._paused.discard(adapter_name)
        self._active_adapters = [name for name in self._active_adapters if name != adapter_name]

    # -- merging

    @torch.no_grad()
    def merge(
        self,
        safe_merge: bool = False,
        adapter_names: Sequence[str] | None = None,
        *,
        low_memory: bool = False,
    ) -> MergeError | None:
        """Write adapters into the base layer's weights.

        Args:
            safe_merge: Refuse weights that aren't finite, and leave the base as it was.
            adapter_names: Which ones, in this order, after those already merged; by default the active ones.
            low_memory: Keep no pristine copy; unmerging then subtracts, and rounds.

        Returns:
            With `low_memory`, what unmerging will leave behind.

        Raises:
            AdapterError: `safe_merge` found values that aren't finite, or the form differs from an earlier
                merge's.
        """
        wanted = list(self._active_adapters if adapter_names is None else adapter_names)
        new = [name for name in wanted if name not in self.merged_adapters and self.has_adapter(name)]
        if not new:
            return None
        if self.merged_adapters and low_memory != self._low_memory:
            raise AdapterError(
                f"Adapters {self.merged_adapters} are merged with low_memory={self._low_memory}; merge {new} in the "
                "same form, or unmerge first."
            )
        if self.merged_adapters and low_memory:
            # Without a copy of the base there is nothing to measure the total error against.
            raise AdapterError(
                f"Adapters {self.merged_adapters} are merged in low memory. Unmerge, then merge them and {new} in one "
                "call."
            )
        if self._disable_adapters:
            raise AdapterError(f"Can't merge {new} while adapters are disabled. Enable them first.")
        if low_memory and not all(self.is_additive(name) for name in new):
            raise AdapterError(
                f"{type(self).__name__} doesn't merge by adding, so it has no low-memory form."
            )
        if low_memory and quantization_backend(self.base_layer):
            raise AdapterError(
                f"{new} can't be merged in low memory: the base's weights are quantized by "
                f"{quantization_backend(self.base_layer)}, so merging makes a copy of them in full precision."
            )
        self._low_memory = low_memory
        names = [*self.merged_adapters, *new]
        error = self._write(new if low_memory else names, safe=safe_merge)
        self.merged_adapters = names
        return error

    @torch.no_grad()
    def check_merge(self, adapter_names: Sequence[str], *, safe_merge: bool = False) -> None:
        """Raise what `merge` would raise about the merged weights, and change nothing."""
        names = [name for name in adapter_names if self.has_adapter(name)]
        merged = self.merged_tensors(names)
        if safe_merge:
            check_finite(merged, names)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take every merged adapter out of the base layer's weights again: bit for bit, unless merged in low memory."""
        if not self._disable_adapters:
            self._restore(self.merged_adapters)
        self.merged_adapters = []

    def detach(self) -> nn.Module:
        """Leave the base layer as it was found, and give it back."""
        self.unmerge()
        return self.base_layer

    @torch.no_grad()
    def _write(self, names: Sequence[str], *, safe: bool = False) -> MergeError | None:
        if self._low_memory:
            if safe:
                check_finite(self.merged_tensors(names), names)
            return add_in_place(self.base_layer, names, self.merged_tensors)
        present = {key: self.base_layer.get_parameter(key).data for key in self._pristine}
        self._restore(names)
        self._unpack()
        try:
            merged = self.merged_tensors(names)
            if safe:
                check_finite(merged, names)
        except AdapterError:
            # Refused: what was merged before stays merged.
            self._swap_in(present)
            if not present:
                self._repack()
            raise
        self._swap_in(merged)
        return None

    def _swap_in(self, tensors: Mapping[str, Tensor]) -> None:
        for key, value in tensors.items():
            parameter = self.base_layer.get_parameter(key)
            self._pristine[key] = parameter.data
            parameter.data = value

    @torch.no_grad()
    def _restore(self, names: Sequence[str]) -> None:
        if self._low_memory:
            for name in reversed(names):
                subtract_in_place(self.base_layer, name, self.merged_tensors)
        for key, value in self._pristine.items():
            self.base_layer.get_parameter(key).data = value
        self._pristine = {}
        self._repack()

    def _unpack(self) -> None:
        if quantization_backend(self.base_layer):
            self.__dict__["_packed"], self.base_layer = self.base_layer, DequantizedLinear(self.base_layer)

    def _repack(self) -> None:
        if self._packed is not None:
            self.base_layer, self.__dict__["_packed"] = self._packed, None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # `model.to(...)` must move the pristine weights along with the merged ones.
        self._pristine = {key: fn(value) for key, value in self._pristine.items()}
        if self._packed is not None:
            self._packed._apply(fn, recurse)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __repr__(self) -> str:
        return f"{self.kind}.{super().__repr__()}".lstrip(".")
