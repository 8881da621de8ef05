"""The contract that every method meets.

A method says: its configuration; how it attaches to a frozen model and detaches without a trace; which parameters
train; its state and how that is loaded back; whether it merges into the weights, and the exact inverse; and its terms:
what an adapter computes, for all that run it without knowing the method. `get_peft_model`, checkpoints, the trainer,
exports and the engine know methods only through this page and `PeftConfig`. Writing one: `docs/add-a-method.md`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from manytune.errors import AdapterError, ConfigError
from manytune.methods.config import PeftConfig
from manytune.methods.tuners.attached import ATTACHED
from manytune.methods.tuners.base_layers import BaseLayers
from manytune.methods.tuners.filling import taken
from manytune.methods.tuners.freezing import FrozenBase
from manytune.methods.tuners.merging import MergeError
from manytune.methods.tuners.own_tables import OwnTables, Tables
from manytune.methods.tuners.quantized_layers import keep_differentiable
from manytune.methods.tuners.table_terms import over_tables
from manytune.methods.tuners.targeted import targeted_modules, targeted_parameters
from manytune.methods.tuners.terms import INSTEAD, Terms, TermsError
from manytune.methods.tuners.training_hooks import TrainingHooks
from manytune.methods.tuners.unsupported import TrainsInUseOnlyError

#: What names the base alone where an adapter is named.
BASE = "__base__"

# Adapters are kept in containers of this kind, which refuse the names of their own attributes.
_CONTAINER = nn.ModuleDict()


class Tuner(nn.Module, ABC):
    """One method attached to one model, with any number of named adapters.

    The model becomes the child `model` and stays usable through it; unknown attributes are looked up there.

    Args:
        model: The model; changed in place, until `unload`.
        config: Options of the first adapter.
        adapter_name: Its name.

    Mutates: every parameter of the model is frozen at attachment, and gets its former `requires_grad` back at
        `unload`.
    """

    #: Start of the names of this method's parameters, as in `lora_A`.
    prefix: ClassVar[str] = ""
    #: What kind of method it is, for messages.
    kind: ClassVar[str] = "weight"
    #: What a checkpoint puts in front of the names that `state` gives.
    file_prefix: ClassVar[str] = "base_model.model."
    #: What `state` puts in front of the names of the model's own parameters.
    parameter_prefix: str = ""
    #: Whether the adapters act in the model's layers; if not, nothing merges, and the model is as it was.
    in_layers: ClassVar[bool] = True
    #: Whether several of its adapters can be in use at once by adding to a layer's output, as `PeftMixedModel` does it.
    mixes: ClassVar[bool] = False
    #: Why adapters have no weighted sum, as a clause; None if they have one, see `SummedTuner`.
    no_sum: ClassVar[str | None] = "the method doesn't say how they add up"

    def __init__(
        self,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        *,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.peft_config: dict[str, PeftConfig] = {}
        self.__dict__["own_tables"] = OwnTables()
        self._frozen_base = FrozenBase(model)
        if getattr(model, "hf_quantizer", None) is not None:
            keep_differentiable(model)
        try:
            self._frozen_base.freeze()
            self.add_adapter(
                adapter_name,
                config,
                low_cpu_mem_usage=low_cpu_mem_usage,
                autocast_adapter_dtype=autocast_adapter_dtype,
            )
            self.set_adapter(adapter_name, inference_mode=config.inference_mode)
        except BaseException:
            self._frozen_base.thaw()
            raise
        if self.in_layers:
            model.__dict__[ATTACHED] = adapter_name

    own_tables: OwnTables  # the embedding tables that adapters bring along

    # -- the contract

    @abstractmethod
    def add_adapter(
        self,
        adapter_name: str,
        config: PeftConfig,
        *,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Add an adapter, frozen and not in use. Nothing is half-added if this raises.

        Args:
            adapter_name: A new name.
            config: Its options; what is inferred from the model (such as `target_modules`) is filled in.
            low_cpu_mem_usage: Make the parameters on the meta device; a checkpoint will bring them.
            autocast_adapter_dtype: Keep the parameters in float32 on a half-precision base.
        """

    @abstractmethod
    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter. If it was in use, the oldest remaining one takes its place."""

    @abstractmethod
    def set_adapter(self, adapter_names: str | Sequence[str], inference_mode: bool = False) -> None:
        """Use these adapters and no others; only they train, or nothing does with `inference_mode`."""

    def set_requires_grad(self, adapter_names: Sequence[str], *, requires_grad: bool = True) -> None:
        """Let adapters train, or freeze them, whether in use or not.

        Raises:
            TrainsInUseOnlyError: The method does so.
        """
        kinds = ", ".join(sorted({str(config.peft_type) for config in self.peft_config.values()}))
        raise TrainsInUseOnlyError(
            f"Setting `requires_grad` is not supported for {self.kind} methods like {kinds}. Use set_adapter."
        )

    @property
    @abstractmethod
    def active_adapters(self) -> list[str]:
        """The adapters in use."""

    @abstractmethod
    def enable_adapters(self, *, enabled: bool) -> None:
        """Apply the adapters, or behave exactly as the base, merged or not."""

    @property
    @abstractmethod
    def enabled(self) -> bool | None:
        """Whether the adapters are applied; None if they are at some layers and not at others."""

    @abstractmethod
    def state(self, adapter_name: str) -> dict[str, Tensor]:
        """An adapter's tensors by their name in a checkpoint, less `file_prefix`."""

    @abstractmethod
    def memory_name(self, adapter_name: str, key: str) -> str:
        """The name in the model, as `named_parameters` gives it, of what `state` calls `key`."""

    def state_within(self, adapter_name: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `state` gives, out of tensors of the model named as `memory_name` does.

        Raises:
            CheckpointError: They lack some of the adapter's.
        """
        names = {key: self.memory_name(adapter_name, key) for key in self.state(adapter_name)}
        return taken(adapter_name, state_dict, names)

    @abstractmethod
    def load_state(
        self, adapter_name: str, tensors: dict[str, Tensor], *, ignore_mismatched_sizes: bool = False
    ) -> tuple[list[str], list[str]]:
        """Fill an adapter from tensors named as `state` names them.

        Returns:
            The names that the adapter has and they lack, and the names that they have and nothing takes.

        Raises:
            ShapeMismatchError: A tensor has another shape than the adapter's.
        """

    @abstractmethod
    def merge_adapter(
        self,
        adapter_names: Sequence[str] | None = None,
        safe_merge: bool = False,
        *,
        low_memory: bool = False,
    ) -> MergeError | None:
        """Write adapters into the base's weights; see `AdapterLayer.merge`."""

    @abstractmethod
    def unmerge_adapter(self) -> None:
        """Take every merged adapter out again."""

    @abstractmethod
    def unload(self) -> nn.Module:
        """Detach without a trace, and give back the model that was attached to."""

    @abstractmethod
    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> nn.Module:
        """Write adapters into the weights for good, detach, and give back the model."""

    # -- what a method may say, with defaults

    @contextmanager
    def switched(self, adapter_names: list[str], *, merged: bool) -> Iterator[None]:
        """Within this context these adapters are in use; afterwards, what is in use and what trains are as before.

        Args:
            adapter_names: Adapters that exist; none for the base alone.
            merged: Whether to write them into the weights meanwhile, if they are next to weights.
        """
        former, training = self.active_adapters, [p for p in self.parameters() if p.requires_grad]
        self.set_adapter(adapter_names, inference_mode=True)
        try:
            yield
        finally:
            self.set_adapter(former, inference_mode=True)
            for parameter in training:
                parameter.requires_grad_(True)

    def hold_float32(self) -> None:
        """Hold what trains of the base's own half-precision weights in float32, for `float32_activations`."""

    def training_hooks(self) -> Sequence[TrainingHooks]:
        """What the method does in a training besides having gradients; by default nothing."""
        return ()

    @classmethod
    def converted(
        cls, config: PeftConfig, tensors: Mapping[str, Tensor], initial: str | Path
    ) -> tuple[PeftConfig, dict[str, Tensor]]:
        """An adapter that fits a changed base only, as one for the base as it is.

        Args:
            config: Its options.
            tensors: Its tensors, named as in a checkpoint.
            initial: Directory in which the same adapter was saved before its training.

        Raises:
            ConfigError: It has no such form.
        """
        kind = config.peft_type
        raise ConfigError(f"path_initial_model_for_weight_conversion is for LoRA adapters, found {kind}.")

    @classmethod
    def separated(
        cls, config: PeftConfig, tensors: Mapping[str, Tensor]
    ) -> dict[str, tuple[PeftConfig, dict[str, Tensor]]]:
        """The adapters, by name, that a saved adapter of a combined method consists of; none for other methods."""
        return {}

    @classmethod
    def vllm_rank(cls, config: PeftConfig, names: Iterable[str], *, patterns: bool = False) -> int:
        """The rank that vLLM has to make room for.

        Args:
            config: An adapter's options.
            names: The names of its tensors in its file.
            patterns: Whether this vLLM reads `rank_pattern` and `alpha_pattern`; others ignore them in silence.

        Raises:
            ConfigError: vLLM can't run it.
        """
        reason = f"vLLM runs plain LoRA adapters only, and it is of type {config.peft_type}"
        raise ConfigError(f"{reason}. Merge it into its base instead.")

    @classmethod
    def terms(cls, config: Any, tensors: Mapping[str, Tensor], model: nn.Module) -> Terms:
        """What a saved adapter does to the base, in the terms of `terms.py`.

        From these alone adapters are served in mixed batches, switched, exported and accounted for. They share the
        tensors' memory where they can.

        Args:
            config: Its options.
            tensors: Its tensors by their names in the file.
            model: The base; adapters may be attached to it.

        Raises:
            TermsError: It has none, or doesn't fit the base; by default the method doesn't say.
        """
        raise TermsError(f"{cls.__module__}.{cls.__qualname__} doesn't state its terms. {INSTEAD}")

    def live_terms(self, adapter_name: str) -> Terms:
        """The same of an attached adapter as it is now, in use or not: with its present scaling, say.

        The base is what the model was before anything was attached. The terms share the parameters' memory where they
        can, and are right until the next change.

        Raises:
            AdapterError: There is no such adapter.
            TermsError: See `terms`.
        """
        self._require(adapter_name)
        tensors = {f"{self.file_prefix}{name}": t.detach() for name, t in self.state(adapter_name).items()}
        terms = self.terms(self.peft_config[adapter_name], tensors, self.model)
        return self._over_tables(terms, adapter_name)

    def bring_tables(self, adapter_name: str, tables: Tables) -> None:
        """Let an adapter have embedding tables of its own; see `OwnTables.bring`."""
        self.own_tables.bring(adapter_name, tables)

    # -- shared

    @property
    def targeted_module_names(self) -> list[str]:
        """Paths of the model's layers that carry adapters, in its order."""
        return targeted_modules(self.model)

    @property
    def targeted_parameter_names(self) -> list[str]:
        """Paths of the parameters that are adapted in other layers."""
        return targeted_parameters(self.model)

    def using(
        self, adapter_names: str | Sequence[str], *, merged: bool = False
    ) -> AbstractContextManager[None]:
        """Within this context the model uses other adapters; see `switched`.

        Args:
            adapter_names: One, or several whose updates add up; `"__base__"` for the base alone.
            merged: See `switched`.

        Raises:
            AdapterError: A name is unknown; adapters are merged already; several are named, and the method has no sum;
                or, for the merged form, a weight is shared with another module or can't take the adapter.
        """
        given = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        names = [] if given == [BASE] else given
        for name in names:
            self._require(name)
        return self.switched(names, merged=merged)

    def refuse_checkpointing(self, *, planned: bool = False) -> None:
        """Refuse gradient checkpointing, for a method whose adapters wouldn't be seen by layers that are recomputed.

        Args:
            planned: Whether it is about to be turned on; otherwise the model is asked whether it is.

        Raises:
            ConfigError: It is on, or will be.
        """

    def mounted(self) -> dict[str, nn.Module]:
        """What hangs on the `PeftModel`, by attribute; `base_model` is what it calls."""
        return {"base_model": self}

    def applied(self, base_model: nn.Module) -> AbstractContextManager[None]:
        """Within this context, calls and generation of `base_model` (or a replica of it) use the adapters in use."""
        return nullcontext()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model with the adapters in use."""
        return self.model(*args, **kwargs)

    def _base_layers(self, adapter_name: str) -> BaseLayers:
        """The base under what is attached, with the embedding tables that an adapter brings."""
        return BaseLayers(self.model, self.own_tables.as_seen_by(adapter_name))

    def _over_tables(self, terms: Terms, adapter_name: str) -> Terms:
        """An adapter's terms over the base, of those over the base with its own tables."""
        tables = self.own_tables.of(adapter_name)
        return over_tables(terms, self._base_layers(adapter_name), tables) if tables else terms

    def _require(self, adapter_name: str) -> None:
        if adapter_name not in self.peft_config:
            known = ", ".join(repr(name) for name in self.peft_config) or "none"
            raise AdapterError(f"Adapter {adapter_name} does not exist. Loaded adapters: {known}.")

    def _require_new(self, adapter_name: str) -> None:
        if adapter_name in self.peft_config:
            raise AdapterError(f"Adapter with name '{adapter_name}' already exists. Choose another name.")
        if not adapter_name or set(adapter_name) & set("./\\") or hasattr(_CONTAINER, adapter_name):
            raise AdapterError(
                f"{adapter_name!r} can't name an adapter: it becomes the name of a module and of a directory, so it "
                "must not be empty, hold a dot or a slash, or be an attribute of torch.nn.ModuleDict, such as 'keys'."
            )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # A half-built object (deepcopy, unpickling) has no children yet; looking further would never end.
            if "_modules" not in self.__dict__ or "model" not in self._modules:
                raise
            return getattr(self.model, name)
