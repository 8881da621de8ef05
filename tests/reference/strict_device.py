"""A second device made of CPU memory, which refuses what an accelerator refuses; it needs no accelerator.

Tensors on it hold real values and name a device of their own, so code that forgets to move something fails here as it
would on a GPU: an operation on tensors of both devices is an error, and so is reading one as a NumPy array. Copies
between the two, CPU tensors without dimensions, and CPU indices into a tensor on the device are allowed, as CUDA does.

Registering the device is for the whole process, can't be undone, and has to come before the process's first backward
pass: torch starts a thread for each device then. So what runs on it runs in a process of its own, `in_own_process`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from multiprocessing import get_context
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "strict"

_CPU = torch.device("cpu")
#: Operations that may read from one device and write to the other.
_COPIES = {"copy_", "_to_copy", "_copy_from", "_copy_from_and_resize", "_pin_memory"}
#: Those whose indices may be on the CPU.
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class MixedDevicesError(RuntimeError):
    """An operation was given tensors on both devices."""


class _Backend(_DummyBackendModule):
    """What torch asks of a device's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Random numbers are the CPU's."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


@cache
def registered() -> torch.device:
    """The device; the first call makes torch know it."""
    _setup_privateuseone_for_python_backend(NAME, _Backend())
    return torch.device(NAME, 0)


class StrictTensor(Tensor):
    """A tensor on the device; `inner` has its values on the CPU."""

    inner: Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> StrictTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=registered(),
        )
        made.inner = inner
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"StrictTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _is_strict(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _unwrapped(value: Any) -> Any:
    if isinstance(value, StrictTensor):
        return value.inner
    return _CPU if isinstance(value, torch.device) and value.type == NAME else value


def _each(function: Callable[[Any], Any], value: Any) -> Any:
    """A function of every leaf of what an operation takes or gives: lists and tuples of values.

    torch's pytrees know more kinds of containers, and take most of the time of an operation on a tiny model.
    """
    if isinstance(value, (tuple, list)):
        return type(value)([_each(function, one) for one in value])
    return function(value)


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation of torch, on the CPU's memory."""
    tensors: list[Tensor] = []
    _each(lambda one: tensors.append(one) if isinstance(one, Tensor) else None, [args, [*kwargs.values()]])
    here = [tensor for tensor in tensors if isinstance(tensor, StrictTensor)]
    target = kwargs.get("device") or next((a for a in args if isinstance(a, torch.device)), None)
    if not here and not _is_strict(target):
        return func(*args, **kwargs)
    name = func._schema.name.removeprefix("aten::")
    others = [tensor for tensor in tensors if not isinstance(tensor, StrictTensor) and tensor.dim()]
    indexed = name in _INDEXED and isinstance(args[0], StrictTensor)
    if here and others and name not in _COPIES and not indexed:
        shapes = [tuple(other.shape) for other in others]
        raise MixedDevicesError(f"{name}: expected all tensors on {registered()}, found {shapes} on the CPU")
    options = {key: _each(_unwrapped, value) for key, value in kwargs.items()}
    found = func(
        *_each(_unwrapped, args), **options | ({"pin_memory": False} if options.get("pin_memory") else {})
    )
    if name == "copy_":
        return args[0]
    if name in _COPIES and target is not None and not _is_strict(target):
        return found
    known = {id(tensor.inner): tensor for tensor in here}
    made: list[Tensor] = []

    def wrapped(one: Any) -> Any:
        if not isinstance(one, Tensor):
            return one
        made.append(known[id(one)] if id(one) in known else StrictTensor(one))
        return made[-1]

    result = _each(wrapped, found)
    if not here or name in _COPIES or not made:
        return result
    return return_and_correct_aliasing(func, args, kwargs, result)


class _Operations(TorchDispatchMode):
    """Runs what makes tensors on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Replaces the functions that don't get as far as an operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        replacement = _REPLACED.get(func)
        return func(*args, **kwargs) if replacement is None else replacement(func, *args, **kwargs)


def _tensor(func: Callable[..., Tensor], data: Any, *, device: Any = None, **options: Any) -> Tensor:
    trains = options.pop("requires_grad", False)
    made = func(data, device=_CPU if _is_strict(device) else device, **options)
    if _is_strict(device):
        made = StrictTensor(made)
    return made.requires_grad_() if trains else made


def _tolist(func: Callable[..., Any], tensor: Tensor) -> Any:
    return func(tensor.inner if isinstance(tensor, StrictTensor) else tensor)


def _numpy(func: Callable[..., Any], tensor: Tensor, *args: Any, **options: Any) -> Any:
    if isinstance(tensor, StrictTensor):
        raise TypeError(f"can't convert {registered()} device type tensor to numpy. Use Tensor.cpu() first.")
    return func(tensor, *args, **options)


def _item(func: Callable[..., Any], tensor: Tensor, index: Any, *values: Tensor) -> Any:
    """Lists of indices are made tensors where their values are read, not by the device."""
    parts = index if isinstance(index, tuple) else (index,)
    return func(tensor, tuple(torch.tensor(p) if isinstance(p, list) else p for p in parts), *values)


def _set_data(func: Callable[..., Any], tensor: Tensor, value: Tensor) -> None:
    """Let a CPU parameter become one on the device, as a parameter can become a GPU's."""
    if isinstance(tensor, StrictTensor) == isinstance(value, StrictTensor) and not isinstance(
        value, StrictTensor
    ):
        func(tensor, value)
        return
    moved = nn.Parameter(value.detach(), requires_grad=tensor.requires_grad)
    torch.utils.swap_tensors(tensor, moved)


def _attention(
    func: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention written out, since its choice of a kernel knows no device like this."""
    if not isinstance(query.data, StrictTensor):
        return func(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if enable_gqa:
        repeats = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-1, -2)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value


_REPLACED: dict[Any, Callable[..., Any]] = {
    torch.tensor: _tensor,
    Tensor.__getitem__: _item,
    Tensor.__setitem__: _item,
    Tensor.tolist: _tolist,
    Tensor.numpy: _numpy,
    Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
    functional.scaled_dot_product_attention: _attention,
}


def _start() -> None:
    """Before anything else is imported: views of tensors that are made of others don't go with inference mode."""
    registered()
    torch.set_num_threads(1)
    torch.inference_mode = _without_gradients  # type: ignore[assignment,misc]


def _without_gradients(mode: bool = True) -> AbstractContextManager[None]:
    """In inference mode's place."""
    return torch.no_grad() if mode else nullcontext()


@contextmanager
def in_own_process() -> Iterator[Callable[..., Any]]:
    """Within the context `call(function, *args)` calls it where the device may be used, and returns what it does."""
    with ProcessPoolExecutor(1, get_context("spawn"), _start) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


@contextmanager
def strict_device() -> Iterator[torch.device]:
    """The device, usable within the context: tensors and modules go to it and come back as ever."""
    device = registered()
    load_file, compatible = safetensors.torch.load_file, torch._has_compatible_shallow_copy_type

    def load(path: Any, device: Any = "cpu") -> dict[str, Tensor]:
        tensors = load_file(path, "cpu" if _is_strict(device) else device)
        return {name: tensor.to(device) for name, tensor in tensors.items()}

    safetensors.torch.load_file = load
    # A module that moves sets its parameters' data, so that parameters shared by several modules stay shared.
    torch._has_compatible_shallow_copy_type = lambda tensor, moved: True
    try:
        with _Operations(), _Functions():
            yield device
    finally:
        safetensors.torch.load_file = load_file
        torch._has_compatible_shallow_copy_type = compatible
