"""Soft prompts: trained virtual tokens before a frozen model's input. The machinery that these methods share."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from manytune.errors import AdapterError, CheckpointError, PeftWarning
from manytune.methods.config import PeftConfig, PromptLearningConfig
from manytune.methods.tuners.base import Tuner
from manytune.methods.tuners.filling import fill_state, taken
from manytune.methods.tuners.layer_terms import with_own_tables
from manytune.methods.tuners.merging import MergeError
from manytune.methods.tuners.replaced import replaced_terms
from manytune.methods.tuners.saved_modules import ModulesToSaveWrapper
from manytune.methods.tuners.saved_targets import lies_in, saved_targets
from manytune.methods.tuners.soft_prompt import PROMPT, SoftPrompt, check_model, computed, embeddings_of
from manytune.methods.tuners.table_terms import over_tables
from manytune.methods.tuners.terms import FILE_PREFIX, Terms, TermsError, joined
from manytune.methods.tuners.unsupported import NotInLayersError
from manytune.methods.tuners.walk import replace_module
from manytune.sharded import is_sharded


class PromptTuner(Tuner):
    """A method whose adapters are virtual tokens. The model's layers stay as they are.

    A subclass defines `infer_sizes`, `build`, `shape` and `hooks`. Calls through `PeftModel` put the virtual tokens
    in; a call of the model itself doesn't see them.

    Mutates: replaces each of `modules_to_save` by a `ModulesToSaveWrapper`; `unload` puts the originals back.
    """

    kind: ClassVar[str] = "prompt learning"
    file_prefix: ClassVar[str] = ""
    parameter_prefix = "base_model."
    in_layers: ClassVar[bool] = False
    no_sum: ClassVar[str | None] = "each soft prompt is trained to come directly before the input"
    model: PreTrainedModel
    prompt_encoder: nn.ModuleDict
    _saved: dict[str, ModulesToSaveWrapper]

    def __init__(self, model: nn.Module, config: PeftConfig, adapter_name: str, **options: Any) -> None:
        # Not children: the prompts hang on the PeftModel, and the wrappers in the model.
        self.__dict__.update(
            prompt_encoder=nn.ModuleDict(), _saved={}, _active=[], _enabled=True, _trains=False
        )
        super().__init__(model, config, adapter_name, **options)

    # -- what a subclass says

    @abstractmethod
    def infer_sizes(self, config: Any) -> None:
        """Fill in the sizes that are inferred from the model, and refuse others."""

    @abstractmethod
    def build(self, config: Any) -> SoftPrompt:
        """The trainable virtual tokens, initialised."""

    @abstractmethod
    def shape(self, config: Any) -> tuple[int, int]:
        """Tokens and width of the computed virtual tokens, as a checkpoint holds them."""

    @abstractmethod
    def hooks(self, model: PreTrainedModel, prompt: SoftPrompt, config: Any) -> list[RemovableHandle]:
        """Make calls of a model use a prompt, until the hooks are removed."""

    @classmethod
    @abstractmethod
    def prompt_terms(cls, config: Any, values: Tensor, model: PreTrainedModel) -> Terms:
        """The terms of computed virtual tokens, as a checkpoint holds them; see `Tuner.terms`."""

    # -- the contract

    @classmethod
    def terms(cls, config: Any, tensors: Mapping[str, Tensor], model: nn.Module) -> Terms:
        """See `Tuner.terms`."""
        base, tables, others = with_own_tables(
            model, config, _with_prefix(tensors, cls.parameter_prefix, FILE_PREFIX)
        )
        tensors = _with_prefix(others, FILE_PREFIX, cls.parameter_prefix)
        saved = {
            name.removeprefix("base_model."): tensor
            for name, tensor in tensors.items()
            if lies_in(name, config.modules_to_save or ())
        }
        if tensors.keys() - {f"base_model.{name}" for name in saved} != {PROMPT}:
            raise TermsError(
                f"{config.peft_type} adapter: expected {PROMPT!r} alone, found {', '.join(sorted(tensors))}."
            )
        assert isinstance(model, PreTrainedModel), "virtual tokens are for models of transformers"
        prompt = cls.prompt_terms(config, tensors[PROMPT].detach(), model)
        found = joined([prompt, replaced_terms(base, saved, in_place=False)])
        return over_tables(found, base, tables)

    def mounted(self) -> dict[str, nn.Module]:
        """See `Tuner.mounted`: the user's model, and the prompts next to it."""
        return {"base_model": self.model, "prompt_encoder": self.prompt_encoder}

    @contextmanager
    def applied(self, base_model: nn.Module) -> Iterator[None]:
        """See `Tuner.applied`."""
        if not self._enabled or not self._active:
            yield
            return
        name = self._active[0]
        assert isinstance(base_model, PreTrainedModel), "infer_sizes checks it"
        handles = self.hooks(base_model, self._prompt(name), self.peft_config[name])
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add_adapter(
        self,
        adapter_name: str,
        config: PeftConfig,
        *,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """See `Tuner.add_adapter`; a prompt is small, so `low_cpu_mem_usage` needs no meta device here."""
        self._require_new(adapter_name)
        assert isinstance(config, PromptLearningConfig)
        check_model(self.model, config)
        self.infer_sizes(config)
        keepers = self._keepers(config)
        # An adapter for inference has its computed values only, as its file does.
        prompt = SoftPrompt(*self.shape(config)) if config.inference_mode else self.build(config)
        prompt.requires_grad_(False)
        dtype = self.model.dtype
        if autocast_adapter_dtype and dtype in (torch.float16, torch.bfloat16):
            dtype = torch.float32
        # On the meta device its size is counted, and nothing else.
        device = None if prompt.embedding.weight.is_meta else embeddings_of(self.model).device
        self.prompt_encoder[adapter_name] = prompt.to(device=device, dtype=dtype)
        for path, keeper in keepers.items():
            keeper.add(adapter_name, autocast=autocast_adapter_dtype)
            if path not in self._saved:
                replace_module(self.model, path, keeper)
        self._saved.update(keepers)
        self.peft_config[adapter_name] = config

    def delete_adapter(self, adapter_name: str) -> None:
        """See `Tuner.delete_adapter`."""
        self._require(adapter_name)
        del self.peft_config[adapter_name], self.prompt_encoder[adapter_name]
        for keeper in self._saved.values():
            keeper.delete_adapter(adapter_name)
        self.own_tables.forget(adapter_name)
        if adapter_name in self._active:
            self.set_adapter(list(self.peft_config)[:1])

    def set_adapter(self, adapter_names: str | Sequence[str], inference_mode: bool = False) -> None:
        """See `Tuner.set_adapter`.

        Raises:
            AdapterError: More than one is named; each is trained to come directly before the input.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        for name in names:
            self._require(name)
        self._require_one(names)
        for keeper in self._saved.values():
            keeper.set_adapter(names, inference_mode=inference_mode)
        self.own_tables.use(names if self._enabled else [])
        self._active[:] = names
        self._trains = not inference_mode
        self._let_train()

    @contextmanager
    def switched(self, adapter_names: list[str], *, merged: bool) -> Iterator[None]:
        """See `Tuner.switched`."""
        self._require_one(adapter_names)
        former = list(self._active)
        with ExitStack() as stack:
            for keeper in self._saved.values():
                stack.enter_context(keeper.temporarily(adapter_names))
            stack.enter_context(self.own_tables.instead(adapter_names if self._enabled else []))
            self._active[:] = adapter_names
            try:
                yield
            finally:
                self._active[:] = former

    @property
    def active_adapters(self) -> list[str]:
        """The adapters in use."""
        return list(self._active)

    @property
    def enabled(self) -> bool:
        """See `Tuner.enabled`."""
        return self._enabled

    def enable_adapters(self, *, enabled: bool) -> None:
        """See `Tuner.enable_adapters`."""
        self._enabled = enabled
        for keeper in self._saved.values():
            keeper.enable_adapters(enabled)
        self.own_tables.use(self._active if enabled else [])
        self._let_train()

    def state(self, adapter_name: str) -> dict[str, Tensor]:
        """See `Tuner.state`: the computed virtual tokens, and modules trained in full."""
        self._require(adapter_name)
        return {PROMPT: computed(self._prompt(adapter_name)), **self._saved_tensors(adapter_name)}

    def memory_name(self, adapter_name: str, key: str) -> str:
        """See `Tuner.memory_name`."""
        if key == PROMPT:
            return f"prompt_encoder.{adapter_name}.embedding.weight"
        for path in self._saved:
            name = key.removeprefix(f"base_model.{path}.")
            if name != key:
                return f"base_model.{path}.modules_to_save.{adapter_name}.{name}"
        return key

    def state_within(self, adapter_name: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Tuner.state_within`: a prompt that a network computes is computed from the network in it."""
        self._require(adapter_name)
        prompt = self._prompt(adapter_name)
        within = {name: f"prompt_encoder.{adapter_name}.{name}" for name, _ in prompt.named_parameters()}
        saved = {key: self.memory_name(adapter_name, key) for key in self._saved_tensors(adapter_name)}
        own = taken(adapter_name, state_dict, within)
        return {PROMPT: computed(prompt, own), **taken(adapter_name, state_dict, saved)}

    def load_state(
        self, adapter_name: str, tensors: dict[str, Tensor], *, ignore_mismatched_sizes: bool = False
    ) -> tuple[list[str], list[str]]:
        """See `Tuner.load_state`.

        Raises:
            CheckpointError: The adapter computes its virtual tokens, and is sharded.

        Warns:
            PeftWarning: The adapter computes its virtual tokens and will train. The file has only the computed
                ones, so these train directly from here on.
        """
        self._require(adapter_name)
        prompt = self._prompt(adapter_name)
        if prompt.computed and PROMPT in tensors:
            weight = prompt.embedding.weight
            if is_sharded(weight):
                raise CheckpointError(
                    f"Adapter '{adapter_name}': a checkpoint's computed virtual tokens would replace the network that "
                    "computes them, and its weights are sharded. Load it before the model is sharded."
                )
            prompt = SoftPrompt(*self.shape(self.peft_config[adapter_name]))
            prompt.to(weight.device, weight.dtype).requires_grad_(weight.requires_grad)
        mine = {PROMPT: prompt.embedding.weight, **self._saved_tensors(adapter_name)}
        left = fill_state(adapter_name, mine, tensors, ignore_mismatched_sizes=ignore_mismatched_sizes)
        fits = PROMPT in tensors and tensors[PROMPT].shape == prompt.embedding.weight.shape
        if fits and prompt is not self._prompt(adapter_name):
            warnings.warn(
                f"Adapter '{adapter_name}': a checkpoint holds the computed virtual tokens, not the network that "
                "computed them. They replace it, and train directly from here on; make the optimizer after loading.",
                PeftWarning,
                stacklevel=5,
            )
            self.prompt_encoder[adapter_name] = prompt
        return left

    def merge_adapter(
        self,
        adapter_names: Sequence[str] | None = None,
        safe_merge: bool = False,
        *,
        low_memory: bool = False,
    ) -> MergeError | None:
        """There is nothing to merge."""
        self._nothing_in_layers("merge_adapter")

    def unmerge_adapter(self) -> None:
        """There is nothing merged."""
        self._nothing_in_layers("unmerge_adapter")

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> nn.Module:
        """There is nothing to merge."""
        self._nothing_in_layers("merge_and_unload")

    def unload(self) -> nn.Module:
        """See `Tuner.unload`."""
        for path, keeper in self._saved.items():
            replace_module(self.model, path, keeper.original_module)
        self.own_tables.use([])
        self.own_tables.leave()
        self._saved.clear()
        self._active.clear()
        self.peft_config.clear()
        self.prompt_encoder.clear()
        self._frozen_base.thaw()
        return self.model

    # -- parts

    def _nothing_in_layers(self, what: str) -> NoReturn:
        raise NotInLayersError(
            f"{what}: virtual tokens are not weights of the model, so there is nothing to merge or unmerge."
        )

    @staticmethod
    def _require_one(names: list[str]) -> None:
        if len(names) > 1:
            raise AdapterError(f"Only one soft prompt can be in use at a time, found {names}.")

    def _prompt(self, adapter_name: str) -> SoftPrompt:
        prompt = self.prompt_encoder[adapter_name]
        assert isinstance(prompt, SoftPrompt)
        return prompt

    def _let_train(self) -> None:
        for name, prompt in self.prompt_encoder.items():
            prompt.requires_grad_(self._enabled and self._trains and name in self._active)

    def _saved_tensors(self, adapter_name: str) -> dict[str, Tensor]:
        return {
            f"base_model.{path}.{name}": tensor
            for path, keeper in self._saved.items()
            for name, tensor in keeper.tensors(adapter_name).items()
        }

    def _keepers(self, config: PromptLearningConfig) -> dict[str, ModulesToSaveWrapper]:
        return {
            path: module if isinstance(module, ModulesToSaveWrapper) else ModulesToSaveWrapper(module)
            for path, module in saved_targets(self.model, config)
        }


def _with_prefix(tensors: Mapping[str, Tensor], former: str, prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin with another prefix; those that don't begin with the former one stay as they are."""
    return {
        f"{prefix}{name.removeprefix(former)}" if name.startswith(former) else name: tensor
        for name, tensor in tensors.items()
    }
