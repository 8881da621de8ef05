"""Attaching LoRA to a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from manytune.errors import ConfigError, PeftWarning
from manytune.methods.arithmetic.combination import Combination
from manytune.methods.config import PeftConfig, PeftType
from manytune.methods.lora.attention import MultiheadAttention, with_output_projections
from manytune.methods.lora.biases import trained_biases, with_the_bases
from manytune.methods.lora.config import LoraConfig
from manytune.methods.lora.conv import conv_layer
from manytune.methods.lora.conversion import as_plain_lora
from manytune.methods.lora.embedding import Embedding
from manytune.methods.lora.experts import grouped_experts, name_experts, regrouped
from manytune.methods.lora.init import starts_from_weight
from manytune.methods.lora.layer import LoraLayer
from manytune.methods.lora.linear import Linear
from manytune.methods.lora.pairs import lora_pairs
from manytune.methods.lora.parameter_files import moved, names_in_files, parameter_terms
from manytune.methods.lora.parameter_targets import refuse_both, select_parameters, wrappers_for
from manytune.methods.lora.parameters import ParamWrapper, holder
from manytune.methods.lora.quantized import QuantizedLinear, is_quantized_linear
from manytune.methods.lora.sums import sum_options, write_sum
from manytune.methods.lora.tokens import (
    refuse_rows,
    refuse_sum_of_rows,
    row_plan,
    rows_of,
    without_repeated_rows,
)
from manytune.methods.lora.vllm import vllm_rank
from manytune.methods.registry import Method, register
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.base_layers import BaseLayers
from manytune.methods.tuners.layer_terms import by_layer, saved_terms
from manytune.methods.tuners.left_frozen import warn_of_left_frozen
from manytune.methods.tuners.replaced import replaced_terms
from manytune.methods.tuners.saved_targets import lies_in
from manytune.methods.tuners.sums import SummedTuner
from manytune.methods.tuners.targets import (
    Selection,
    base_of,
    candidates,
    expand_targets,
    has_default,
    is_all_linear,
    select,
)
from manytune.methods.tuners.terms import FILE_PREFIX, Terms, TermsError, joined
from manytune.methods.tuners.token_rows import rows_in_file
from manytune.methods.tuners.token_targets import RowPlan, file_row_terms
from manytune.methods.tuners.unmatched import check_patterns
from manytune.methods.tuners.usual_targets import ATTENTION_PROJECTIONS

_ORIGINAL = ".original_module."
_ADVICE = "To adapt them, name them in target_parameters; torch.nn.MultiheadAttention may be in target_modules instead."


class LoraModel(SummedTuner):
    """LoRA attached to a model; see `LoraConfig`."""

    prefix: ClassVar[str] = "lora_"
    mixes: ClassVar[bool] = True
    layer_class = LoraLayer
    #: Whether it adapts parameters that no linear layer holds.
    adapts_parameters: ClassVar[bool] = True
    #: What is adapted by default, by architecture.
    usual: ClassVar[Mapping[str, Sequence[str]]] = ATTENTION_PROJECTIONS

    @property
    def _particular(self) -> dict[str, PeftConfig]:
        """The adapters that others next to them have to take into account: they train biases, or take weights over.

        Kept apart, so that adding or choosing one adapter among thousands asks nothing of the rest.
        """
        found: dict[str, PeftConfig] = self.__dict__.setdefault("_particular_configs", {})
        return found

    def changes_base(self, adapter_name: str) -> bool:
        """See `LayerTuner.changes_base`."""
        config = self._particular.get(adapter_name)
        return config is not None and starts_from_weight(getattr(config, "init_lora_weights", True))

    def check(self, adapter_name: str, config: LoraConfig) -> None:
        """Biases belong to the base, of which there is one copy: only one adapter may train them.

        Raises:
            ConfigError: Another adapter trains biases already.
        """
        inits = {adapter_name: config, **self._particular}
        shifting = [n for n, c in inits.items() if starts_from_weight(getattr(c, "init_lora_weights", True))]
        if shifting and self.peft_config:
            init = getattr(inits[shifting[0]], "init_lora_weights", None)
            warnings.warn(
                f"Adapter '{shifting[0]}' starts from the base's weights (init_lora_weights={init!r}), and takes a "
                "part of them over while it is in use. Adapters next to it see the whole weights here, in HF PEFT what "
                "is left of them.",
                PeftWarning,
                stacklevel=5,
            )
        others = [
            name for name, other in self._particular.items() if getattr(other, "bias", "none") != "none"
        ]
        if config.bias != "none" and others:
            raise ConfigError(
                f"LoraModel supports only 1 adapter with bias, and adapter '{adapter_name}' has bias={config.bias!r} "
                f"next to {others}. When using multiple adapters, set bias to 'none' for all others."
            )

    def select(self, config: LoraConfig) -> list[tuple[str, nn.Module]]:
        """See `LayerTuner.select`."""
        every_linear = is_all_linear(config.target_modules)
        if self.adapts_parameters:
            name_experts(self.model, config)
        chosen = self._select_modules(config)
        _correct_orientation(config, [base_of(module) for _, module in chosen])
        chosen = with_output_projections(self.model, chosen)
        places = select_parameters(self.model, config)
        refuse_both(chosen, places)
        self.__dict__["_plan"] = row_plan(self.model, config, self._layers, [path for path, _ in chosen])
        keys = [f"{path}.{name}" for path, name in places]
        self.check_patterns(config, [*(path for path, _ in chosen), *keys])
        if every_linear:
            warn_of_left_frozen(self.model, config, keys, _ADVICE if self.adapts_parameters else "")
        wrappers, self.__dict__["_to_wrap"] = wrappers_for(self.model, places)
        return [*chosen, *wrappers, *self._plan.places]

    #: Which rows of embeddings the adapter that is being added trains.
    _plan: RowPlan

    def _select_modules(self, config: LoraConfig) -> list[tuple[str, nn.Module]]:
        parameters = bool(config.target_parameters)
        if config.target_modules is None and parameters and not has_default(self.model, self.usual):
            return []
        given = expand_targets(self.model, config, self.usual)
        names = config.target_modules or ()
        return select(self.model, Selection.of(config, names, given=given)) if names or not parameters else []

    def check_patterns(self, config: LoraConfig, targeted: Sequence[str]) -> None:
        """Refuse ranks and alphas for what isn't targeted."""
        for option in ("rank_pattern", "alpha_pattern"):
            everything = (path for path, _ in candidates(self.model))
            patterns = getattr(config, option) or {}
            check_patterns(option, patterns, targeted, everything, saved=config.was_saved)

    def wrap(self, path: str, module: nn.Module, config: LoraConfig) -> AdapterLayer:
        """See `LayerTuner.wrap`."""
        if path in self._plan:
            return self._plan.wrap(path, module)
        if path in self._to_wrap:
            return ParamWrapper(module, self._to_wrap[path])
        if isinstance(module, nn.Embedding):
            return Embedding(module)
        if is_quantized_linear(module):
            return QuantizedLinear(module)
        if isinstance(module, (nn.Linear, Conv1D)):
            return Linear(module)
        if isinstance(module, nn.MultiheadAttention):
            return MultiheadAttention(module)
        convolution = conv_layer(module)
        if convolution is not None:
            return convolution
        raise ConfigError(
            f"Target module {path} ({type(module).__name__}) is not supported. LoRA is for torch.nn.Linear, "
            "Embedding, Conv1d, Conv2d, Conv3d and MultiheadAttention, and transformers' Conv1D. Name layers of these "
            "kinds in target_modules."
        )

    def add_to_layer(self, layer: AdapterLayer, path: str, adapter_name: str, config: LoraConfig) -> None:
        """See `LayerTuner.add_to_layer`."""
        if path in self._plan:
            self._plan.add(layer, path, adapter_name)
            return
        refuse_rows(layer, path)
        assert isinstance(layer, LoraLayer)
        if isinstance(layer, ParamWrapper):
            path = f"{holder(path)}.{layer.parameter_name}"
        layer.add_adapter(
            adapter_name, r=config.rank_at(path), lora_alpha=config.alpha_at(path), config=config
        )

    _to_wrap: dict[str, str]

    # -- sums and other forms

    def sum_options(self, adapters: Sequence[str], how: Combination) -> dict[str, Any]:
        """See `SummedTuner.sum_options`."""
        carrying = {p: layer for p, layer in self._layers.items() if any(map(layer.has_adapter, adapters))}
        configs: list[Any] = [self.peft_config[name] for name in adapters]
        refuse_sum_of_rows(configs)
        return sum_options(adapters, configs, carrying, how)

    def write_sum(self, layer: Any, *args: Any) -> None:
        """See `SummedTuner.write_sum`."""
        write_sum(layer, *args)

    @classmethod
    def converted(
        cls, config: Any, tensors: Mapping[str, Tensor], initial: str | Path
    ) -> tuple[PeftConfig, dict[str, Tensor]]:
        """See `Tuner.converted`: PiSSA's and OLoRA's adapters."""
        return as_plain_lora(config, tensors, initial)

    @classmethod
    def vllm_rank(cls, config: Any, names: Iterable[str], *, patterns: bool = False) -> int:
        """See `Tuner.vllm_rank`."""
        return vllm_rank(config, names, patterns=patterns)

    # -- terms

    @classmethod
    def scaling_at(cls, config: Any, path: str) -> float:
        """See `LayerTuner.scaling_at`."""
        scaling: float = config.scaling_at(path)
        return scaling

    @classmethod
    def terms_over(cls, base: BaseLayers, config: Any, tensors: Mapping[str, Tensor]) -> Terms:
        """See `LayerTuner.terms_over`.

        Raises:
            TermsError: The adapter fits no base but a changed one, or see `Tuner.terms`.
        """
        if starts_from_weight(config.init_lora_weights):
            raise TermsError(
                f"init_lora_weights={config.init_lora_weights!r}: the adapter runs next to a changed base, so it can't "
                "share one. Save it with path_initial_model_for_weight_conversion, which makes it a plain LoRA adapter."
            )
        # With bias="all" files also hold biases of modules that aren't run: modules_to_save has copies of them.
        tensors = {name: tensor for name, tensor in tensors.items() if _ORIGINAL not in name}
        rows, tensors = rows_in_file(tensors)
        _, others = by_layer(tensors, cls.layer_class.adapter_layer_names)
        biases = {
            name: tensor
            for name, tensor in others.items()
            if name.endswith(".bias")
            and config.bias != "none"
            and not lies_in(name, config.modules_to_save or ())
        }
        rest = {n: t for n, t in tensors.items() if n.removeprefix(FILE_PREFIX) not in biases}
        adapted, rest = parameter_terms(config, rest, base.model)
        parts = [*adapted, replaced_terms(base, biases, in_place=True)]
        if config.trains_tokens:
            parts.append(file_row_terms(base, rows_of(base.model, config), rows))
        if adapted and not any(".lora_" in name for name in rest):
            saved = {name.removeprefix(FILE_PREFIX): tensor for name, tensor in rest.items()}
            return joined([*parts, saved_terms(base, config, saved)])
        return joined([super().terms_over(base, config, rest), *parts])

    def live_terms(self, adapter_name: str) -> Terms:
        """See `Tuner.live_terms`."""
        self._require(adapter_name)
        found = super().live_terms(adapter_name)
        biases = {n: b.detach() for n, b in self._biases(adapter_name).items() if _ORIGINAL not in n}
        return joined([found, replaced_terms(self._base_layers(adapter_name), biases, in_place=True)])

    def _base_layers(self, adapter_name: str) -> BaseLayers:
        tables = self.own_tables.as_seen_by(adapter_name)
        return BaseLayers(self.model, {**tables, **dict(self.__dict__["_base_biases"])})

    # -- biases of the base

    def _biases(self, adapter_name: str) -> dict[str, nn.Parameter]:
        """The base's biases that an adapter trains, by path."""
        which = getattr(self.peft_config[adapter_name], "bias", "none")
        return trained_biases(self.model, self._layers, adapter_name, which)

    def set_adapter(self, adapter_names: str | Sequence[str], inference_mode: bool = False) -> None:
        """See `Tuner.set_adapter`."""
        super().set_adapter(adapter_names, inference_mode)
        for name in self._particular.keys() & self.peft_config.keys():
            for bias in self._biases(name).values():
                bias.requires_grad_(name in self._active and not inference_mode)

    def enable_adapters(self, *, enabled: bool) -> None:
        """See `Tuner.enable_adapters`; biases that were trained stay as they are, which a warning says."""
        if not enabled and any(self._biases(name) for name in self._active):
            warnings.warn(
                "Careful, disabling adapter layers with bias configured to be 'all' or 'lora_only' does not produce "
                "the same output as the base model would without adaption: the biases have been trained in place.",
                PeftWarning,
                stacklevel=3,
            )
        super().enable_adapters(enabled=enabled)

    @contextmanager
    def switched(self, adapter_names: list[str], *, merged: bool) -> Iterator[None]:
        """See `Tuner.switched`; the base alone has its own biases."""
        kept = () if adapter_names else self.__dict__["_base_biases"]
        with super().switched(adapter_names, merged=merged), with_the_bases(kept):
            yield

    def state(self, adapter_name: str) -> dict[str, Tensor]:
        """See `Tuner.state`."""
        names = names_in_files(self._layers, adapter_name)
        own = {moved(key, names): tensor for key, tensor in super().state(adapter_name).items()}
        return {**own, **self._biases(adapter_name)}

    def memory_name(self, adapter_name: str, key: str) -> str:
        """See `Tuner.memory_name`."""
        names = {there: here for here, there in names_in_files(self._layers, adapter_name).items()}
        return super().memory_name(adapter_name, moved(key, names))

    def load_state(
        self, adapter_name: str, tensors: dict[str, Tensor], *, ignore_mismatched_sizes: bool = False
    ) -> tuple[list[str], list[str]]:
        """See `Tuner.load_state`; factors of single experts, as older files have them, are put together."""
        tensors = without_repeated_rows(self._layers, tensors)
        names = names_in_files(self._layers, adapter_name)
        if names:
            wrappers: Any = {path: self._layers[path] for path in names}
            keys = {f"{holder(p)}.{w.parameter_name}": names[p] for p, w in wrappers.items()}
            tensors = regrouped(tensors, grouped_experts(self.model), keys)
        return super().load_state(adapter_name, tensors, ignore_mismatched_sizes=ignore_mismatched_sizes)

    def add_adapter(self, adapter_name: str, config: PeftConfig, **options: Any) -> None:
        """See `Tuner.add_adapter`; biases that will train are copied first, so that `unload` can put them back."""
        super().add_adapter(adapter_name, config, **options)
        if getattr(config, "bias", "none") != "none" or starts_from_weight(
            getattr(config, "init_lora_weights", True)
        ):
            self._particular[adapter_name] = config
        self.__dict__.setdefault("_base_biases", []).extend(
            (bias, bias.detach().clone()) for bias in self._biases(adapter_name).values()
        )

    def unload(self) -> nn.Module:
        """See `Tuner.unload`."""
        for layer in self._layers.values():
            layer.unmerge()
        self._restore_biases()
        return super().unload()

    def delete_adapter(self, adapter_name: str) -> None:
        """See `Tuner.delete_adapter`; biases that it trained are the base's again."""
        trained = adapter_name in self.peft_config and self._biases(adapter_name)
        super().delete_adapter(adapter_name)
        self._particular.pop(adapter_name, None)
        if trained:
            self._restore_biases()

    def _restore_biases(self) -> None:
        for bias, value in self.__dict__["_base_biases"]:
            bias.data.copy_(value)
            bias.requires_grad_(False)
        self.__dict__["_base_biases"] = []

    def _detach(self) -> nn.Module:
        for bias, _ in self.__dict__["_base_biases"]:
            bias.requires_grad_(False)
        self.__dict__["_base_biases"] = []
        self._particular.clear()
        return super()._detach()


def _correct_orientation(config: LoraConfig, modules: Sequence[nn.Module]) -> None:
    """Which way round a weight is stored is known from the layer; what the user said is corrected."""
    if any(isinstance(module, Conv1D) for module in modules):
        config.fan_in_fan_out = True
    elif config.fan_in_fan_out and any(isinstance(module, nn.Linear) for module in modules):
        warnings.warn(
            "fan_in_fan_out is set to True but the target module is `torch.nn.Linear`. "
            "Setting fan_in_fan_out to False.",
            PeftWarning,
            stacklevel=2,
        )
        config.fan_in_fan_out = False


register(Method("lora", PeftType.LORA, LoraConfig, LoraModel, in_peft=True, rank="r", pairs=lora_pairs))
