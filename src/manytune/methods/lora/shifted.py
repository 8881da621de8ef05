"""LoRA layers whose adapters may take a part of the base's weight over: PiSSA and OLoRA.

Such an adapter starts from factors A₀, B₀ of the base's weight W, and runs next to W - s·B₀A₀. That weight is in place
while the adapter is in use, and W itself at any other time: with another adapter, with adapters disabled, and after
detaching. W is kept aside, so going back is bit-exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from manytune.methods.lora.config import LoraConfig
from manytune.methods.lora.layer import LoraLayer
from manytune.methods.lora.terms import lora_terms
from manytune.methods.tuners.base_layers import BaseLayer
from manytune.methods.tuners.terms import Terms


class ShiftedLayer(LoraLayer):
    """A LoRA layer that can shift the base's weight.

    Mutates: the data of the base layer's weight, whenever the adapters in use change.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self._shifts: dict[str, tuple[Tensor, Tensor]] = {}
        self._in_place: list[str] = []
        self._original: Tensor | None = None

    def shift_by(self, adapter_name: str, a: Tensor, b: Tensor) -> None:
        """Let an adapter take s·BA out of the base's weight; a is (r, in), b is (out, r) times s."""
        self._shifts[adapter_name] = (a, b)

    def origin(self, adapter_names: Sequence[str]) -> Tensor:
        """See `LoraLayer.origin`: W without the parts that these adapters have taken over."""
        weight = super().origin(adapter_names) if self._original is None else self._original
        shifts = [self._shifts[name] for name in adapter_names if name in self._shifts]
        if not shifts:
            return weight
        total = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        for a, b in shifts:
            part = b @ a
            total -= part.t() if self.output_dim == 1 else part
        return total

    def live_terms(self, base: BaseLayer, adapter_name: str, config: LoraConfig) -> Terms:
        """See `AdapterLayer.live_terms`; the base is W, so what an adapter takes over is part of its update."""
        tensors = {name: parameter.detach() for name, parameter in self.tensors(adapter_name).items()}
        scaling, start = self.present_scaling(adapter_name), self._shifts.get(adapter_name)
        return lora_terms(base, tensors, config.rank_at(base.path), scaling, start)

    def pristine(self, name: str) -> Tensor:
        """See `Wrapper.pristine`: with the parts that adapters have taken over."""
        shifted = name == "weight" and self._original is not None
        return self._original if shifted else super().pristine(name)  # type: ignore[return-value]

    def is_additive(self, adapter_name: str) -> bool:
        """See `AdapterLayer.is_additive`."""
        return not self._shifts and super().is_additive(adapter_name)

    def _place(self) -> None:
        if not (self._shifts or self._in_place) or (self.merged_adapters and not self._disable_adapters):
            return
        wanted = [n for n in self._active_adapters if n in self._shifts and not self._disable_adapters]
        if wanted == self._in_place:
            return
        weight = self.base_layer.get_parameter("weight")
        if self._original is None:
            self._original = weight.data
        with torch.no_grad():
            weight.data = self.origin(wanted).to(weight.dtype)
        self._in_place = wanted
        if not wanted:
            self._original = None

    def set_adapter(self, adapter_names: str | Sequence[str], *, inference_mode: bool = False) -> None:
        """See `AdapterLayer.set_adapter`."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self._place()

    @contextmanager
    def temporarily(self, adapter_names: list[str]) -> Iterator[None]:
        """See `AdapterLayer.temporarily`."""
        try:
            with super().temporarily(adapter_names):
                self._place()
                yield
        finally:
            self._place()

    def enable_adapters(self, enabled: bool) -> None:
        """See `AdapterLayer.enable_adapters`."""
        super().enable_adapters(enabled)
        self._place()

    def delete_adapter(self, adapter_name: str) -> None:
        """See `AdapterLayer.delete_adapter`."""
        super().delete_adapter(adapter_name)
        self._place()
        self._shifts.pop(adapter_name, None)

    def unmerge(self) -> None:
        """See `AdapterLayer.unmerge`."""
        super().unmerge()
        self._place()

    def detach(self) -> nn.Module:
        """See `AdapterLayer.detach`."""
        base = super().detach()
        self._active_adapters = []
        self._place()
        return base

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        if self._original is not None:
            self._original = fn(self._original)
        self._shifts = {name: (fn(a), fn(b)) for name, (a, b) in self._shifts.items()}
        return super()._apply(fn, recurse)
