"""Combinations: a method in the layers and a soft prompt, trained and kept as one adapter.

An adapter's files are `adapter_model.safetensors`, with the tensors of both parts under the names that each
part's own file gives them (they never clash), and `adapter_config.json` with the parts' options in it. HF PEFT
has no such method; `export_parts` writes two adapters that it reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from manytune.errors import ConfigError
from manytune.methods.checkpoint.format import read_tensors, write_adapter
from manytune.methods.config import PeftConfig, PeftType, PromptLearningConfig
from manytune.methods.registry import Method, method_of, methods, peft_config_from, register
from manytune.methods.tuners.base import Tuner
from manytune.methods.tuners.merging import MergeError
from manytune.methods.tuners.own_tables import Tables
from manytune.methods.tuners.soft_prompt import PROMPT
from manytune.methods.tuners.soft_prompt_tuner import PromptTuner
from manytune.methods.tuners.terms import Terms, joined
from manytune.methods.tuners.training_hooks import TrainingHooks
from manytune.methods.tuners.unsupported import NotInLayersError


@dataclass
class CombinedConfig(PeftConfig):
    """A method in the layers together with a soft prompt: both train at once, on one loss.

    Args:
        weights: The method in the layers, such as `LoraConfig(r=8)`. It carries `modules_to_save`, too.
        prompt: The soft prompt, such as `PrefixTuningConfig(num_virtual_tokens=20)`.

    In a recipe a part is a mapping with its method's `name`: `{name: lora, r: 8}`. What the parts share
    (`task_type`, `inference_mode`, the base) is set here and handed to them.

    Raises:
        ConfigError: A part is missing, or is not of the kind that belongs there.
    """

    weights: PeftConfig | dict[str, Any] | None = None
    prompt: PeftConfig | dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.COMBINED
        self.weights, self.prompt = _part("weights", self.weights), _part("prompt", self.prompt)
        if self.weights.is_prompt_learning:
            raise ConfigError(f"weights: expected a method in the layers, found {self.weights.peft_type}.")
        if not isinstance(self.prompt, PromptLearningConfig):
            raise ConfigError(f"prompt: expected a soft prompt, found {self.prompt.peft_type}.")
        if self.prompt.modules_to_save:
            raise ConfigError(f"prompt: modules_to_save={self.prompt.modules_to_save} belongs to `weights`.")

    @property
    def parts(self) -> tuple[PeftConfig, PromptLearningConfig]:
        """Both parts, with what they share."""
        assert isinstance(self.weights, PeftConfig) and isinstance(self.prompt, PromptLearningConfig)
        for part in (self.weights, self.prompt):
            for name in (
                "task_type",
                "inference_mode",
                "base_model_name_or_path",
                "revision",
                "auto_mapping",
            ):
                setattr(part, name, getattr(self, name))
            if self.was_saved:
                part.as_saved()
        return self.weights, self.prompt

    @property
    def texts(self) -> frozenset[str]:
        """See `PeftConfig.texts`: those of both parts."""
        weights, prompt = self.parts
        return super().texts | weights.texts | prompt.texts

    @property
    def loading_note(self) -> str | None:
        """See `PeftConfig.loading_note`."""
        return " ".join(note for part in self.parts if (note := part.loading_note)) or None

    def for_loading(self) -> Self:
        """See `PeftConfig.for_loading`."""
        weights, prompt = self.parts
        return dataclasses.replace(self, weights=weights.for_loading(), prompt=prompt.for_loading())

    @classmethod
    def unplanned(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """See `PeftConfig.unplanned`."""
        found = super().unplanned(options)
        for name in ("weights", "prompt"):
            part = found.get(name)
            if isinstance(part, dict) and part.get("name") in methods():
                found[name] = methods()[part["name"]].config.unplanned(part)
        return found

    @property
    def is_prompt_learning(self) -> bool:
        """Whether the method trains virtual tokens; here among others."""
        return True

    @property
    def modules_to_save(self) -> list[str] | None:
        """Modules trained in full, which belong to `weights`."""
        names: list[str] | None = getattr(self.weights, "modules_to_save")  # noqa: B009
        return names

    @modules_to_save.setter
    def modules_to_save(self, names: list[str] | None) -> None:
        setattr(self.weights, "modules_to_save", names)  # noqa: B010


class CombinedModel(Tuner):
    """Both parts attached to one model, each by its own method; see `CombinedConfig`.

    `merge_adapter` merges the part in the layers; the prompt stays, so `merge_and_unload` is refused.
    """

    kind: ClassVar[str] = "prompt learning"
    file_prefix: ClassVar[str] = ""
    no_sum: ClassVar[str | None] = "its soft prompts don't add up"
    weights: Tuner
    prompt: PromptTuner

    def refuse_checkpointing(self, *, planned: bool = False) -> None:
        """See `Tuner.refuse_checkpointing`: what either part says."""
        self.weights.refuse_checkpointing(planned=planned)
        self.prompt.refuse_checkpointing(planned=planned)

    def mounted(self) -> dict[str, nn.Module]:
        """See `Tuner.mounted`: parameters are called as with either part alone."""
        return {"base_model": self.weights, "prompt_encoder": self.prompt.prompt_encoder}

    def applied(self, base_model: nn.Module) -> AbstractContextManager[None]:
        """See `Tuner.applied`."""
        return self.prompt.applied(base_model.get_submodule("model"))

    def add_adapter(self, adapter_name: str, config: PeftConfig, **options: Any) -> None:
        """See `Tuner.add_adapter`."""
        self._require_new(adapter_name)
        assert isinstance(config, CombinedConfig)
        weights, prompt = config.parts
        if self.peft_config:
            self._check_kinds(weights, prompt)
            self.weights.add_adapter(adapter_name, weights, **options)
            try:
                self.prompt.add_adapter(adapter_name, prompt, **options)
            except BaseException:
                self.weights.delete_adapter(adapter_name)
                raise
        else:
            # Not children: what hangs on the PeftModel is for `mounted` to say.
            tuner = method_of(weights).tuner(self.model, weights, adapter_name, **options)
            try:
                other = method_of(prompt).tuner(self.model, prompt, adapter_name, **options)
            except BaseException:
                tuner.unload()
                raise
            self.__dict__.update(weights=tuner, prompt=other, own_tables=tuner.own_tables)
            self.parameter_prefix = f"{tuner.file_prefix}{tuner.parameter_prefix}"
        self.peft_config[adapter_name] = config

    def delete_adapter(self, adapter_name: str) -> None:
        """See `Tuner.delete_adapter`."""
        self._require(adapter_name)
        self.weights.delete_adapter(adapter_name)
        self.prompt.delete_adapter(adapter_name)
        del self.peft_config[adapter_name]

    def set_adapter(self, adapter_names: str | Sequence[str], inference_mode: bool = False) -> None:
        """See `Tuner.set_adapter`; one at a time, for the prompt's sake."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self.prompt.set_adapter(names, inference_mode)
        self.weights.set_adapter(names, inference_mode)

    @property
    def active_adapters(self) -> list[str]:
        """The adapters in use."""
        return self.prompt.active_adapters

    @property
    def enabled(self) -> bool | None:
        """See `Tuner.enabled`."""
        return self.weights.enabled if self.weights.enabled == self.prompt.enabled else None

    def enable_adapters(self, *, enabled: bool) -> None:
        """See `Tuner.enable_adapters`."""
        self.weights.enable_adapters(enabled=enabled)
        self.prompt.enable_adapters(enabled=enabled)

    def state(self, adapter_name: str) -> dict[str, Tensor]:
        """See `Tuner.state`: both parts', each under the names of its own files."""
        prefix = self.weights.file_prefix
        own = {f"{prefix}{key}": tensor for key, tensor in self.weights.state(adapter_name).items()}
        return {**own, **self.prompt.state(adapter_name)}

    def memory_name(self, adapter_name: str, key: str) -> str:
        """See `Tuner.memory_name`."""
        if key == PROMPT:
            return self.prompt.memory_name(adapter_name, key)
        prefix = self.weights.file_prefix
        return f"{prefix}{self.weights.memory_name(adapter_name, key.removeprefix(prefix))}"

    def state_within(self, adapter_name: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Tuner.state_within`: both parts'."""
        prefix = self.weights.file_prefix
        inside = {n.removeprefix(prefix): t for n, t in state_dict.items() if n.startswith(prefix)}
        own = self.weights.state_within(adapter_name, inside)
        return {
            **{f"{prefix}{key}": tensor for key, tensor in own.items()},
            **self.prompt.state_within(adapter_name, state_dict),
        }

    def bring_tables(self, adapter_name: str, tables: Tables) -> None:
        """See `Tuner.bring_tables`: they belong to the part in the layers."""
        self.weights.bring_tables(adapter_name, tables)

    def load_state(
        self, adapter_name: str, tensors: dict[str, Tensor], *, ignore_mismatched_sizes: bool = False
    ) -> tuple[list[str], list[str]]:
        """See `Tuner.load_state`."""
        prefix = self.weights.file_prefix
        weights, prompt = _divided(tensors)
        own = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
        foreign = [key for key in weights if not key.startswith(prefix)]
        options = {"ignore_mismatched_sizes": ignore_mismatched_sizes}
        missing, unexpected = self.weights.load_state(adapter_name, own, **options)
        lacking, left = self.prompt.load_state(adapter_name, prompt, **options)
        return (
            [*(f"{prefix}{key}" for key in missing), *lacking],
            [*foreign, *(f"{prefix}{key}" for key in unexpected), *left],
        )

    def hold_float32(self) -> None:
        """See `Tuner.hold_float32`."""
        self.weights.hold_float32()

    def training_hooks(self) -> Sequence[TrainingHooks]:
        """See `Tuner.training_hooks`: both parts'."""
        return (*self.weights.training_hooks(), *self.prompt.training_hooks())

    @contextmanager
    def switched(self, adapter_names: list[str], *, merged: bool) -> Iterator[None]:
        """See `Tuner.switched`."""
        with (
            self.weights.switched(adapter_names, merged=merged),
            self.prompt.switched(adapter_names, merged=False),
        ):
            yield

    @classmethod
    def separated(
        cls, config: PeftConfig, tensors: Mapping[str, Tensor]
    ) -> dict[str, tuple[PeftConfig, dict[str, Tensor]]]:
        """See `Tuner.separated`: `weights` and `prompt`."""
        assert isinstance(config, CombinedConfig)
        return dict(
            zip(("weights", "prompt"), zip(config.parts, _divided(tensors), strict=True), strict=True)
        )

    @classmethod
    def terms(cls, config: CombinedConfig, tensors: Mapping[str, Tensor], model: nn.Module) -> Terms:
        """See `Tuner.terms`: both parts'."""
        pairs = zip(config.parts, _divided(tensors), strict=True)
        return joined(method_of(part).tuner.terms(part, own, model) for part, own in pairs)

    def live_terms(self, adapter_name: str) -> Terms:
        """See `Tuner.live_terms`."""
        self._require(adapter_name)
        return joined([self.weights.live_terms(adapter_name), self.prompt.live_terms(adapter_name)])

    def merge_adapter(
        self,
        adapter_names: Sequence[str] | None = None,
        safe_merge: bool = False,
        *,
        low_memory: bool = False,
    ) -> MergeError | None:
        """See `Tuner.merge_adapter`: the part in the layers; the prompt goes on as it was."""
        return self.weights.merge_adapter(adapter_names, safe_merge, low_memory=low_memory)

    def unmerge_adapter(self) -> None:
        """See `Tuner.unmerge_adapter`."""
        self.weights.unmerge_adapter()

    def unload(self) -> nn.Module:
        """See `Tuner.unload`."""
        self.weights.unload()
        self.prompt.unload()
        self.peft_config.clear()
        self._frozen_base.thaw()
        return self.model

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> nn.Module:
        """A plain model has no place for the prompt."""
        raise NotInLayersError(
            "merge_and_unload: the soft prompt is not in the layers and would be lost. merge_adapter() merges the "
            "other part and keeps it."
        )

    def _check_kinds(self, weights: PeftConfig, prompt: PeftConfig) -> None:
        first = next(iter(self.peft_config.values()))
        assert isinstance(first, CombinedConfig)
        own = [part.peft_type for part in first.parts]
        if own != [weights.peft_type, prompt.peft_type]:
            raise ConfigError(
                f"Cannot combine adapters with different peft types. Found {' + '.join(map(str, own))} and "
                f"{weights.peft_type} + {prompt.peft_type}."
            )


def export_parts(source: str | Path, target: str | Path) -> tuple[Path, Path]:
    """Write the two parts of a saved combination as adapters of their own, in HF PEFT's form.

    Args:
        source: The combination's directory.
        target: Where `weights` and `prompt` go; created if need be.

    Returns:
        Their directories.

    Raises:
        ConfigError: The adapter isn't a combination.
        CheckpointError: A file is missing or damaged.
    """
    config = PeftConfig.from_pretrained(source)
    if not isinstance(config, CombinedConfig):
        raise ConfigError(f"{source}: expected an adapter of type COMBINED, found {config.peft_type}.")
    for name, (part, tensors) in CombinedModel.separated(config, read_tensors(source)).items():
        write_adapter(Path(target) / name, part, tensors)
    return Path(target) / "weights", Path(target) / "prompt"


def _divided(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return (
        {key: tensor for key, tensor in tensors.items() if key != PROMPT},
        {key: tensor for key, tensor in tensors.items() if key == PROMPT},
    )


def _part(name: str, part: PeftConfig | dict[str, Any] | None) -> PeftConfig:
    if isinstance(part, PeftConfig):
        return part
    if isinstance(part, dict) and "name" in part:
        return peft_config_from(**part)
    if isinstance(part, dict) and "peft_type" in part:
        return PeftConfig.from_peft_type(**part)
    example = "LoraConfig(r=8)" if name == "weights" else "PrefixTuningConfig(num_virtual_tokens=20)"
    raise ConfigError(
        f"{name}: expected a configuration such as {example}, or a mapping with `name`, found {part!r}."
    )


register(Method("combined", PeftType.COMBINED, CombinedConfig, CombinedModel))
