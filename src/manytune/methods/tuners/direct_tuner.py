"""Attaching a method that trains some of the base's own parameters, full fine-tuning among them.

Each adapter has values of its own for the parameters it trains. The values of the one in use are in the
model's parameters, which keep their identity; the base's are kept aside. Switching swaps them, so it costs
nothing, and going back to the base is bit-exact.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from manytune.errors import AdapterError, ConfigError
from manytune.methods.config import PeftConfig
from manytune.methods.tuners.base import Tuner
from manytune.methods.tuners.base_layers import BaseLayers
from manytune.methods.tuners.filling import fill_state
from manytune.methods.tuners.layer_terms import by_layer
from manytune.methods.tuners.merging import MergeError
from manytune.methods.tuners.replaced import replaced_terms
from manytune.methods.tuners.terms import Terms, TermsError
from manytune.own_dtype import HALF
from manytune.sharded import fill, is_sharded

#: What to do on a packed base.
UNPACKED = "Load the base unpacked, or use a method whose weights are next to the base's, such as lora."


class DirectTuner(Tuner):
    """A method whose adapters are other values for parameters of the base.

    A subclass defines `select`, and may set `keeps_base` from its configuration.

    Mutates: the data of the selected parameters, until `unload`.
    """

    no_sum: ClassVar[str | None] = "its adapters are whole weights, not updates of them"

    def __init__(self, model: nn.Module, config: PeftConfig, adapter_name: str, **options: Any) -> None:
        # By adapter and name; None while the model's own parameter holds the value.
        self._values: dict[str, dict[str, Tensor | None]] = {}
        self._pristine: dict[str, Tensor] = {}
        self._active: list[str] = []
        self._present: str | None = None  # the adapter whose values the model holds; None if the base's
        self._enabled = True
        self._paused: list[str] = []
        super().__init__(model, config, adapter_name, **options)

    # -- what a subclass says

    @abstractmethod
    def select(self, config: Any) -> dict[str, nn.Parameter]:
        """The parameters that a configuration trains, by name in the model."""

    def keeps_base(self, config: Any) -> bool:
        """Whether the base's values are kept aside; without them there is one adapter and no way back."""
        return True

    # -- the contract

    def add_adapter(
        self,
        adapter_name: str,
        config: PeftConfig,
        *,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """See `Tuner.add_adapter`; the values start as the base's, in the base's dtype (see `hold_float32`)."""
        self._require_new(adapter_name)
        chosen = self.select(config)
        if not self.keeps_base(config):
            if self.peft_config:
                raise ConfigError("An adapter that doesn't keep the base's weights must be the only one.")
            self._values[adapter_name] = dict.fromkeys(chosen)
        else:
            if any(not self.keeps_base(other) for other in self.peft_config.values()):
                raise ConfigError(
                    f"{list(self.peft_config)} doesn't keep the base's weights, so it must be the only one."
                )
            for name, parameter in chosen.items():
                self._pristine.setdefault(name, parameter.data)
            self._values[adapter_name] = {name: self._pristine[name].clone() for name in chosen}
        self.peft_config[adapter_name] = config

    def hold_float32(self) -> None:
        """See `Tuner.hold_float32`: the present adapters' values; the base's stay as they are.

        Raises:
            ConfigError: The weights are sharded already.
        """
        for values in self._values.values():
            for name, value in values.items():
                if value is not None:
                    values[name] = _widened(value)
                    continue
                parameter = self.model.get_parameter(name)
                if is_sharded(parameter) and parameter.dtype in HALF:
                    raise ConfigError(
                        f"{name} trains in half precision and is sharded already, so it can't be held in float32. "
                        "Shard the model inside float32_activations, or load the base in float32."
                    )
                parameter.data = _widened(parameter.data)

    def delete_adapter(self, adapter_name: str) -> None:
        """See `Tuner.delete_adapter`."""
        self._require(adapter_name)
        self._need_base("delete an adapter")
        remaining = [name for name in self._active if name != adapter_name]
        was_active = remaining != self._active
        del self.peft_config[adapter_name], self._values[adapter_name]
        self.own_tables.forget(adapter_name)
        if was_active:
            self.set_adapter(list(self.peft_config)[:1])

    def set_adapter(self, adapter_names: str | Sequence[str], inference_mode: bool = False) -> None:
        """See `Tuner.set_adapter`.

        Raises:
            AdapterError: More than one is named; two values for one weight don't add up.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        for name in names:
            self._require(name)
        if len(names) > 1:
            raise AdapterError(f"Only one adapter of this method can be in use at a time, found {names}.")
        self._active = names
        self._put(names if self._enabled else [])
        self.own_tables.use(names if self._enabled else [])
        training = set(self._values[names[0]]) if names and not inference_mode else set()
        if not self._enabled:
            # Nothing trains until the adapter is enabled again.
            self._paused, training = list(training), set()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in training)

    @property
    def active_adapters(self) -> list[str]:
        """The adapters in use."""
        return list(self._active)

    def enable_adapters(self, *, enabled: bool) -> None:
        """See `Tuner.enable_adapters`."""
        self._need_base("disable the adapter")
        if enabled == self._enabled:
            return
        self._enabled = enabled
        self.own_tables.use(self._active if enabled else [])
        if enabled:
            self._put(self._active)
            for name in self._paused:
                self.model.get_parameter(name).requires_grad_(True)
        else:
            self._paused = [name for name, p in self.model.named_parameters() if p.requires_grad]
            self._put([])
            for name in self._paused:
                self.model.get_parameter(name).requires_grad_(False)

    @property
    def enabled(self) -> bool:
        """See `Tuner.enabled`."""
        return self._enabled

    def state(self, adapter_name: str) -> dict[str, Tensor]:
        """See `Tuner.state`."""
        self._require(adapter_name)
        return {
            name: self.model.get_parameter(name).data if value is None else value
            for name, value in self._values[adapter_name].items()
        }

    def memory_name(self, adapter_name: str, key: str) -> str:
        """See `Tuner.memory_name`."""
        return key

    def load_state(
        self, adapter_name: str, tensors: dict[str, Tensor], *, ignore_mismatched_sizes: bool = False
    ) -> tuple[list[str], list[str]]:
        """See `Tuner.load_state`."""
        mine = self.state(adapter_name)
        return fill_state(adapter_name, mine, tensors, ignore_mismatched_sizes=ignore_mismatched_sizes)

    def merge_adapter(
        self,
        adapter_names: Sequence[str] | None = None,
        safe_merge: bool = False,
        *,
        low_memory: bool = False,
    ) -> MergeError | None:
        """There is nothing to merge: the weights in use are the adapter's."""
        raise AdapterError(
            "This method trains the base's own weights, so there is nothing to merge. "
            "merge_and_unload() gives the model with the trained weights."
        )

    def unmerge_adapter(self) -> None:
        """See `merge_adapter`."""
        raise AdapterError("This method trains the base's own weights, so nothing is ever merged.")

    def unload(self) -> nn.Module:
        """See `Tuner.unload`."""
        self._need_base("detach it")
        self._put([])
        self.own_tables.use([])
        return self._detach()

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> nn.Module:
        """The model with the trained weights in the base's dtype; nothing is computed."""
        names = self._active if adapter_names is None else list(adapter_names)
        if names != self._active or not self._enabled:
            self._enabled = True
            self.set_adapter(names)
        if safe_merge and not all(value.isfinite().all() for value in self.state(names[0]).values()):
            raise AdapterError(
                f"NaNs detected in the merged weights. The adapter {names[0]} seems to be broken"
            )
        for name, value in self._pristine.items():
            parameter = self.model.get_parameter(name)
            parameter.data = parameter.data.to(value.dtype)
        return self._detach()

    # -- terms

    @classmethod
    def terms(cls, config: Any, tensors: Mapping[str, Tensor], model: nn.Module) -> Terms:
        """See `Tuner.terms`; `model` has the base's own values."""
        _, values = by_layer(tensors, ())
        return replaced_terms(BaseLayers(model), values, in_place=True)

    def live_terms(self, adapter_name: str) -> Terms:
        """See `Tuner.live_terms`."""
        self._require(adapter_name)
        if not self.keeps_base(self.peft_config[adapter_name]):
            raise TermsError(
                f"'{adapter_name}' was trained with keep_base=False, so the base's weights that its terms refer to are "
                "gone. Save it, and load the base again."
            )
        found = replaced_terms(self._base_layers(adapter_name), self.state(adapter_name), in_place=True)
        return self._over_tables(found, adapter_name)

    def _base_layers(self, adapter_name: str) -> BaseLayers:
        kept = {self.model.get_parameter(name): value for name, value in self._pristine.items()}
        return BaseLayers(self.model, {**self.own_tables.as_seen_by(adapter_name), **kept})

    # -- swapping

    def _put(self, names: Sequence[str]) -> None:
        """Move values into the model's parameters, and those that are there back to where they are kept."""
        former, self._present = self._present, names[0] if names else None
        if self._present != former:
            for name, value in self._values.get(former or "", {}).items():
                if value is None:
                    held = self.model.get_parameter(name)
                    self._values[former or ""][name] = held.data.clone() if is_sharded(held) else held.data
        own = self._values[names[0]] if names else {}
        for name, wanted in {**self._pristine, **own}.items():
            if wanted is None:
                continue
            parameter = self.model.get_parameter(name)
            if is_sharded(parameter):
                fill(parameter, wanted)  # FSDP2 holds on to a weight's memory
            else:
                parameter.data = wanted
            if name in own:
                own[name] = None

    def _need_base(self, what: str) -> None:
        if any(not self.keeps_base(config) for config in self.peft_config.values()):
            raise AdapterError(
                f"Can't {what}: it was trained with keep_base=False, so the base's weights are gone. "
                "Load the base again."
            )

    def _detach(self) -> nn.Module:
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        self.own_tables.leave()
        self.peft_config.clear()
        self._values, self._pristine, self._active, self._present = {}, {}, [], None
        self._frozen_base.thaw()
        return self.model

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move the values that aren't in use along with the model's own."""
        result = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        parameters = dict(self.model.named_parameters())
        own = {} if self._present is None else self._values[self._present]
        self._pristine = {
            name: fn(value) if name in own else parameters[name].data
            for name, value in self._pristine.items()
        }
        self._values = {
            adapter: {name: None if value is None else fn(value) for name, value in values.items()}
            for adapter, values in self._values.items()
        }
        return result


def _widened(value: Tensor) -> Tensor:
    return value.to(torch.float32) if value.dtype in HALF else value
