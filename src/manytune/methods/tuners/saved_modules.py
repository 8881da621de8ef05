"""Modules that are trained in full next to an adapter, such as a new classifier head: each adapter has its own copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn

from manytune.errors import AdapterError, ConfigError
from manytune.methods.tuners.base_layers import Wrapper
from manytune.methods.tuners.quantized_layers import packed_parameters, refuse_packed
from manytune.own_dtype import cast_floats

_CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList)


class ModulesToSaveWrapper(Wrapper):
    """A module of the base, and for each adapter that asks for one, a copy that trains.

    Calls and attribute look-ups go to the active adapter's copy; to the original if the active adapter has
    none, or while adapters are disabled.

    Args:
        original_module: The base's module; it stays as it is.

    Raises:
        ModuleTypeError: The module is a mere container, which has no `forward` to replace.
    """

    carries_adapters: ClassVar[bool] = False
    adapter_layer_names: ClassVar[tuple[str, ...]] = ("modules_to_save",)
    other_param_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, original_module: nn.Module) -> None:
        super().__init__()
        self.training = original_module.training
        if isinstance(original_module, _CONTAINERS):
            raise ModuleTypeError(
                f"modules_to_save cannot be applied to modules of type {type(original_module).__name__}. "
                "Name the modules in it instead."
            )
        self.original_module = original_module
        self.modules_to_save = nn.ModuleDict()
        self._active_adapter: str | None = None
        self._trains = False
        self._disable_adapters = False

    @property
    def wrapped(self) -> nn.Module:
        """See `Wrapper.wrapped`."""
        return self.original_module

    @property
    def active_adapter(self) -> str | None:
        """The adapter whose copy is in use; None if it has none."""
        return self._active_adapter

    @property
    def active_adapters(self) -> list[str]:
        """The same, as a list."""
        return [] if self._active_adapter is None else [self._active_adapter]

    @property
    def merged_adapters(self) -> list[str]:
        """None: a copy isn't written into the original."""
        return []

    @property
    def disable_adapters(self) -> bool:
        """Whether the original is in use whatever adapter is active."""
        return self._disable_adapters

    @property
    def current(self) -> nn.Module:
        """The module in use."""
        name = self._active_adapter
        if self._disable_adapters or name is None or name not in self.modules_to_save:
            return self.original_module
        return self.modules_to_save[name]

    def add(self, adapter_name: str, *, autocast: bool = True) -> None:
        """Give an adapter a copy of the original. It doesn't train until the adapter is active.

        Args:
            adapter_name: The adapter.
            autocast: Keep the copy in float32 where the original is in half precision, which rounds small steps away.

        Raises:
            ConfigError: Weights in it are packed, so that a copy can't train.
        """
        packed = packed_parameters(self.original_module)
        refuse_packed(packed, "modules_to_save", "Leave it out, and name it in target_modules instead.")
        twin = copy.deepcopy(self.original_module)
        twin.requires_grad_(False)
        if autocast and _dtype_of(twin) in (torch.float16, torch.bfloat16):
            twin.float()
        self.modules_to_save[adapter_name] = twin

    def trained(self, adapter_name: str) -> nn.Module:
        """An adapter's copy, in the original's dtype."""
        dtype = _dtype_of(self.original_module)
        twin = self.modules_to_save[adapter_name]
        return twin if dtype is None else twin.to(dtype)

    def tensors(self, adapter_name: str) -> dict[str, nn.Parameter]:
        """The copy's parameters by their name within the module; empty if the adapter has no copy."""
        if adapter_name not in self.modules_to_save:
            return {}
        return dict(self.modules_to_save[adapter_name].named_parameters())

    def set_adapter(self, adapter_names: str | Sequence[str], *, inference_mode: bool = False) -> None:
        """Use the copy of the one of these adapters that has one.

        Raises:
            AdapterError: More than one of them has a copy; there is no way to add two modules up.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        mine = [name for name in names if name in self.modules_to_save]
        if len(mine) > 1:
            raise AdapterError(
                f"Only one adapter can be set at a time for ModulesToSaveWrapper, but {mine} each have a copy."
            )
        if self._active_adapter is not None:
            self.set_requires_grad(self._active_adapter, requires_grad=False)
        self._active_adapter = mine[0] if mine else None
        self._trains = bool(mine) and not inference_mode
        if self._trains and not self._disable_adapters:
            self.set_requires_grad(mine[0])

    @contextmanager
    def temporarily(self, adapter_names: list[str]) -> Iterator[None]:
        """Use the copy of the one of these adapters that has one; what trains stays as it is."""
        former = self._active_adapter
        self._active_adapter = next((name for name in adapter_names if name in self.modules_to_save), None)
        try:
            yield
        finally:
            self._active_adapter = former

    def set_requires_grad(self, adapter_name: str, *, requires_grad: bool = True) -> None:
        """Let one adapter's copy train, or freeze it."""
        if adapter_name in self.modules_to_save:
            self.modules_to_save[adapter_name].requires_grad_(requires_grad)

    def enable_adapters(self, enabled: bool) -> None:
        """Use the active adapter's copy, or the original."""
        self._disable_adapters = not enabled
        if self._active_adapter is not None and self._trains:
            self.set_requires_grad(self._active_adapter, requires_grad=enabled)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget one adapter's copy."""
        if adapter_name in self.modules_to_save:
            del self.modules_to_save[adapter_name]
        if self._active_adapter == adapter_name:
            self._active_adapter = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module in use; a copy in float32 on a half-precision base takes and gives the base's dtype."""
        module, dtype = self.current, _dtype_of(self.original_module)
        wide = dtype if module is self.original_module else _dtype_of(module)
        if dtype is None or wide is None or wide == dtype:
            return module(*args, **kwargs)
        args, kwargs = cast_floats(args, wide), cast_floats(kwargs, wide)
        return cast_floats(module(*args, **kwargs), dtype)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # A half-built object (deepcopy, unpickling) has no modules yet; looking further would never end.
            if "_modules" not in self.__dict__ or "original_module" not in self._modules:
                raise
            return getattr(self.current, name)


def kept_copies(module: nn.Module) -> ModulesToSaveWrapper:
    """What keeps adapters' copies of a module: a new one, or the one that has its place already."""
    return module if isinstance(module, ModulesToSaveWrapper) else ModulesToSaveWrapper(module)


def _dtype_of(module: nn.Module) -> torch.dtype | None:
    """The dtype of a module's floating-point parameters; None if it has none."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)


class ModuleTypeError(ConfigError, TypeError):
    """A module of this kind can't be trained in full next to an adapter."""
