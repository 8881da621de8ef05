"""Attaching AdaLoRA to a model, and sharing out the ranks while it trains."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from manytune.errors import AdapterError, ConfigError
from manytune.methods.adalora.allocator import RankAllocator, Triplets, budget_at
from manytune.methods.adalora.config import AdaLoraConfig
from manytune.methods.adalora.layer import SVDConv2d, SVDLinear, cut
from manytune.methods.adalora.sizes import TARGETS
from manytune.methods.config import PeftConfig, PeftType
from manytune.methods.lora.model import LoraModel
from manytune.methods.registry import Method, register
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base import Tuner
from manytune.methods.tuners.training_hooks import TrainingHooks
from manytune.methods.tuners.unmatched import report
from manytune.sharded import refuse_sharded

#: What an optimizer's state calls a parameter's averages, and whether a triplet is kept.
_AVERAGES = ("sensitivity", "deviation")
_KEPT = "kept"


class AdaLoraModel(LoraModel):
    """AdaLoRA attached to a model; see `AdaLoraConfig`.

    Call `update_and_allocate` at every step of a training. manytune's trainer does.
    """

    mixes: ClassVar[bool] = False
    no_sum: ClassVar[str | None] = "each adapter keeps another selection of triplets"

    layer_class = SVDLinear  # type: ignore[assignment]
    adapts_parameters: ClassVar[bool] = False
    usual = TARGETS
    #: The end of a layer's key in `rank_pattern`.
    _KEY: ClassVar[str] = "lora_E"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Averages are no parameters; they last for one training.
        self.__dict__["_allocators"] = {}
        super().__init__(*args, **kwargs)

    _allocators: dict[str, RankAllocator]

    def check_patterns(self, config: Any, targeted: Sequence[str]) -> None:
        """See `LoraModel.check_patterns`; here a key names one layer, and which of its triplets are kept."""
        keys = [f"{path}.{self._KEY}" for path in targeted]
        for key in config.rank_pattern or {}:
            if key not in keys:
                close = difflib.get_close_matches(key, keys, n=1) or keys[:1]
                report(
                    f"rank_pattern[{key!r}] has no effect: no targeted layer has that key. The nearest is "
                    f"{close[0]!r}.",
                    saved=config.was_saved,
                )

    def wrap(self, path: str, module: nn.Module, config: Any) -> AdapterLayer:
        """See `LayerTuner.wrap`."""
        if path in self._plan:
            return super().wrap(path, module, config)
        if isinstance(module, (nn.Linear, Conv1D)):
            return SVDLinear(module)
        if isinstance(module, nn.Conv2d):
            if module.groups > 1:
                raise ConfigError(
                    f"Target module {path}: AdaLoRA's update reaches across the groups of a Conv2d with "
                    f"groups={module.groups}. Leave the layer out of target_modules."
                )
            return SVDConv2d(module)
        raise ConfigError(
            f"Target module {path} ({type(module).__name__}) is not supported. AdaLoRA is for torch.nn.Linear and "
            "Conv2d, and transformers' Conv1D. Name layers of these kinds in target_modules."
        )

    def add_to_layer(self, layer: AdapterLayer, path: str, adapter_name: str, config: Any) -> None:
        """See `LayerTuner.add_to_layer`; a layer that a file's `rank_pattern` names has the rank that is left."""
        if not isinstance(layer, SVDLinear):
            super().add_to_layer(layer, path, adapter_name, config)
            return
        layer.add_adapter(adapter_name, config, rank=config.rank_at(path))

    def delete_adapter(self, adapter_name: str) -> None:
        """See `Tuner.delete_adapter`."""
        super().delete_adapter(adapter_name)
        self._allocators.pop(adapter_name, None)

    # What LoRA's files can be turned into, AdaLoRA's can't.
    converted = Tuner.converted
    vllm_rank = Tuner.vllm_rank

    # -- training

    def training_hooks(self) -> Sequence[TrainingHooks]:
        """See `Tuner.training_hooks`."""
        return (_Allocation(self),)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; a loss in its output has `orthogonality_penalty` added while an adapter trains.

        Raises:
            AdapterError: It trains, and its weights are sharded.
        """
        if torch.is_grad_enabled():
            refuse_sharded(
                self, "train AdaLoRA, which reallocates ranks", "Use LoRA, or DistributedDataParallel"
            )
        output = super().forward(*args, **kwargs)
        loss = getattr(output, "loss", None)
        if isinstance(loss, Tensor) and (penalty := self.orthogonality_penalty()) is not None:
            output.loss = loss + penalty.to(loss)
        return output

    def orthogonality_penalty(self) -> Tensor | None:
        """`orth_reg_weight` times the mean of ‖AAᵀ - I‖ and ‖BᵀB - I‖ over all layers; None if nothing trains."""
        total: Tensor | None = None
        for name in self._training():
            norms = []
            for triplets in self._triplets(name).values():
                a, b = triplets["lora_A"], triplets["lora_B"]
                for gram in (a @ a.t(), b.t() @ b):
                    norms.append((gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).norm())
            own = self._config(name).orth_reg_weight * torch.stack(norms).mean()
            total = own if total is None else total + own
        return total

    def update_and_allocate(self, global_step: int) -> None:
        """Take in a step's gradients and reallocate the ranks, as the schedule says.

        Call it after `loss.backward()` (and `optimizer.step()`) and before `zero_grad()`.

        Args:
            global_step: The number of the step.

        Mutates: E, which becomes 0 where a triplet is cut, and the configuration's `rank_pattern`.

        Raises:
            AdapterError: No adapter trains, or there are no gradients.
        """
        training = self._training()
        if not training:
            raise AdapterError("update_and_allocate: no adapter trains. Choose one with set_adapter.")
        for name in training:
            self._allocate(name, global_step)

    def _allocate(self, adapter_name: str, step: int) -> None:
        config, layers = self._config(adapter_name), self._triplets(adapter_name)
        if step <= config.final_step:
            allocator = self._allocators.setdefault(adapter_name, RankAllocator(config))
            # The last cut takes in no gradients of its own, unless there were none before: a training of one step.
            if step < config.final_step or not allocator.averages:
                allocator.observe(layers)
            if step != config.final_step and (step <= config.tinit or step % config.deltaT):
                return
            chosen = allocator.choose(list(layers), budget_at(config, step, layers=len(layers)))
            config.rank_pattern = {f"{path}.{self._KEY}": kept for path, kept in chosen.items()}
            if step == config.final_step:
                del self._allocators[adapter_name]
        # The optimizer has moved all of E, also what was cut before.
        for path, triplets in layers.items():
            kept = (config.rank_pattern or {}).get(f"{path}.{self._KEY}")
            e = triplets["lora_E"].data
            if kept is not None and len(kept) == len(e):
                e.masked_fill_(~torch.tensor(kept, device=e.device).unsqueeze(1), 0.0)

    def plan_steps(self, steps: int) -> None:
        """Take in how many steps the training has; an adapter whose `total_step` wasn't given plans for these.

        Mutates: the configurations' `total_step`, where it wasn't given.

        Raises:
            ConfigError: An adapter's last cut comes after the training.
        """
        for name in self._training():
            self._config(name).plan_steps(steps)

    def allocation_state(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """What allocation knows at this step, for a checkpoint: by parameter, in its shape."""
        found: dict[nn.Parameter, dict[str, Tensor]] = {}
        for name in self._training():
            averages = self._allocators[name].averages if name in self._allocators else {}
            pattern = self._config(name).rank_pattern or {}
            for path, triplets in self._triplets(name).items():
                for container, parameter in triplets.items():
                    own = dict(zip(_AVERAGES, averages.get((path, container), ()), strict=False))
                    kept = pattern.get(f"{path}.{self._KEY}")
                    if container == self._KEY and kept is not None:
                        own[_KEPT] = torch.tensor(kept, dtype=parameter.dtype).view(-1, 1)
                    found[parameter] = own
        return found

    def load_allocation_state(self, state: Mapping[Any, Mapping[str, Any]]) -> None:
        """Go on from what `allocation_state` gave; other entries are passed over."""
        for name in self._training():
            config, allocator = self._config(name), RankAllocator(self._config(name))
            pattern = {}
            for path, triplets in self._triplets(name).items():
                for container, parameter in triplets.items():
                    own = state.get(parameter, {})
                    if _AVERAGES[0] in own:
                        average, deviation = (own[key] for key in _AVERAGES)
                        allocator.averages[path, container] = average, deviation
                    if _KEPT in own:
                        pattern[f"{path}.{self._KEY}"] = [bool(kept) for kept in own[_KEPT].flatten()]
            self._allocators[name] = allocator
            config.rank_pattern = pattern or None

    def _training(self) -> list[str]:
        """The adapters that train."""
        return [
            name
            for name in self._active
            if any(p.requires_grad for triplets in self._triplets(name).values() for p in triplets.values())
        ]

    def _triplets(self, adapter_name: str) -> dict[str, Triplets]:
        layers = {path: layer for path, layer in self._layers.items() if isinstance(layer, SVDLinear)}
        found = {path: layer.tensors(adapter_name) for path, layer in layers.items()}
        return {path: triplets for path, triplets in found.items() if triplets}

    def _config(self, adapter_name: str) -> AdaLoraConfig:
        config: PeftConfig = self.peft_config[adapter_name]
        assert isinstance(config, AdaLoraConfig)
        return config

    # -- files

    def _kept(self, adapter_name: str, key: str) -> list[bool] | None:
        """What the rank pattern says about a tensor of `state`."""
        path, _, container = key.rpartition(".")
        pattern = getattr(self.peft_config[adapter_name], "rank_pattern", None) or {}
        return pattern.get(f"{path}.{self._KEY}") if container in SVDLinear.adapter_layer_names else None

    @torch.no_grad()
    def state(self, adapter_name: str) -> dict[str, Tensor]:
        """See `Tuner.state`; only the triplets that are kept."""
        result = {}
        for key, tensor in super().state(adapter_name).items():
            kept = self._kept(adapter_name, key)
            result[key] = tensor if kept is None else cut(key.rpartition(".")[2], tensor, kept)
        return result

    def load_state(
        self, adapter_name: str, tensors: dict[str, Tensor], *, ignore_mismatched_sizes: bool = False
    ) -> tuple[list[str], list[str]]:
        """See `Tuner.load_state`; layers shrink to the triplets that the rank pattern keeps."""
        for path, layer in self._layers.items():
            kept = self._kept(adapter_name, f"{path}.{self._KEY}")
            e = tensors.get(f"{path}.{self._KEY}")
            if (
                isinstance(layer, SVDLinear)
                and kept is not None
                and e is not None
                and len(e) == sum(kept)
                and layer.r[adapter_name] == len(kept)
            ):
                layer.keep(adapter_name, kept)
        return super().load_state(adapter_name, tensors, ignore_mismatched_sizes=ignore_mismatched_sizes)


class _Allocation:
    """AdaLoRA's part in a training loop; see `TrainingHooks`.

    With `tfinal` 0 the last cut is at the last step.
    """

    def __init__(self, tuner: AdaLoraModel) -> None:
        self._tuner = tuner

    def plan_steps(self, steps: int) -> None:
        self._tuner.plan_steps(steps)

    def penalty(self) -> Tensor | None:
        return self._tuner.orthogonality_penalty()

    def after_step(self, step: int) -> None:
        self._tuner.update_and_allocate(step)

    def state(self) -> Mapping[nn.Parameter, Mapping[str, Tensor]]:
        return self._tuner.allocation_state()

    def load_state(self, state: Mapping[Any, Mapping[str, Any]]) -> None:
        self._tuner.load_allocation_state(state)


register(Method("adalora", PeftType.ADALORA, AdaLoraConfig, AdaLoraModel, in_peft=True, on_shards=False))
