"""A base with adapters: attaching, switching, running and merging them. Files are `PeftModel`'s matter."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from manytune.errors import AdapterError, ConfigError, PeftWarning
from manytune.methods.arithmetic.combination import Combination
from manytune.methods.config import PeftConfig
from manytune.methods.registry import method_of
from manytune.methods.tuners.attached import ATTACHED, refuse_attached
from manytune.methods.tuners.base import Tuner
from manytune.methods.tuners.sums import add_weighted_adapter
from manytune.methods.tuners.targeted import targeted_modules, targeted_parameters
from manytune.methods.tuners.task_heads import TASK_HEADS, head_names, untrained_parts
from manytune.methods.tuners.unsupported import NotInLayersError
from manytune.model.accounting import accounting_line, count_parameters
from manytune.model.naming import name_base
from manytune.model.per_sample import each_with_its_own
from manytune.sharded import BEFORE_SHARDING, IN_ONE_PROCESS, refuse_sharded, reshard, resharding


class AdaptedModel(nn.Module):
    """A base model with one or more named adapters. Calls, generation and unknown attributes go to the base.

    Args:
        model: The base; changed in place until `unload` or `merge_and_unload`.
        peft_config: Options of the first adapter. This very object is kept, with what is
            inferred from the model filled in.
        adapter_name: Its name.
        autocast_adapter_dtype: Keep adapter weights in float32 on a half-precision base.
        low_cpu_mem_usage: Make the adapter's weights on the meta device; a checkpoint will bring them.

    Raises:
        NoMatchingPeftModuleError: The configuration targets no module.
        ConfigError: An option doesn't fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig,
        adapter_name: str = "default",
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
    ) -> None:
        super().__init__()
        refuse_attached(model)
        refuse_sharded(model, "attach an adapter", BEFORE_SHARDING)
        self.add_task_head(peft_config, model)
        method = method_of(peft_config)
        name_base(peft_config, model)
        tuner = method.tuner(
            model,
            peft_config,
            adapter_name,
            low_cpu_mem_usage=low_cpu_mem_usage,
            autocast_adapter_dtype=autocast_adapter_dtype,
        )
        # The tuner isn't a child: it says itself which of its modules hang here, and so what parameters are called.
        self.__dict__.update({"tuner": tuner, ATTACHED: adapter_name})
        for name, module in tuner.mounted().items():
            self.add_module(name, module)

    tuner: Tuner
    base_model: nn.Module

    # -- adapters

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """Each adapter's options, by its name."""
        return self.tuner.peft_config

    @property
    def active_adapters(self) -> list[str]:
        """The adapters in use; empty after the last was deleted."""
        return self.tuner.active_adapters

    @property
    def active_adapter(self) -> str:
        """The adapter in use; the first of several."""
        names = self.tuner.active_adapters
        if not names:
            raise AdapterError("No adapter is in use. Add one, or choose one with set_adapter.")
        return names[0]

    @property
    def active_peft_config(self) -> PeftConfig:
        """Options of the adapter in use."""
        return self.peft_config[self.active_adapter]

    @property
    def modules_to_save(self) -> set[str] | None:
        """Names of the modules that any adapter trains in full."""
        names = {n for c in self.peft_config.values() for n in getattr(c, "modules_to_save", None) or ()}
        return names or None

    @property
    def peft_type(self) -> str | None:
        """The adapters' method, as `adapter_config.json` calls it."""
        return self.active_peft_config.peft_type

    @property
    def has_active_enabled_adapter(self) -> bool:
        """Whether calls use an adapter: one is chosen, and adapters aren't disabled."""
        return bool(self.active_adapters) and self.tuner.enabled is not False

    @property
    def targeted_module_names(self) -> list[str]:
        """Paths in the base of the layers that carry adapters, in the model's order."""
        return targeted_modules(self.get_base_model())

    @property
    def targeted_parameter_names(self) -> list[str]:
        """Paths of the parameters that are adapted in layers which aren't; see `target_parameters`."""
        return targeted_parameters(self.get_base_model())

    def add_task_head(self, config: PeftConfig, base: nn.Module) -> None:
        """A task's head is new, so all of it trains in full and is saved.

        Warns:
            PeftWarning: A saved adapter lacks a part of the head that the base's checkpoint lacks, too.
        """
        if config.task_type not in TASK_HEADS or not hasattr(config, "modules_to_save"):
            return
        present: list[str] = config.modules_to_save or []
        heads = TASK_HEADS[config.task_type] if config.was_saved else head_names(base, config.task_type)
        config.modules_to_save = [*present, *(head for head in heads if head not in present)]
        untrained = untrained_parts(base, config.modules_to_save) if config.was_saved else []
        if untrained:
            warnings.warn(
                f"The adapter has no values for {untrained}, nor has the base's checkpoint, so they are random. "
                "Was the adapter saved by a program that doesn't save them? Train it again, with "
                f"modules_to_save={untrained}.",
                PeftWarning,
                stacklevel=5,
            )

    def add_adapter(
        self,
        adapter_name: str,
        peft_config: PeftConfig,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Add an adapter of the same method. It isn't used and doesn't train until `set_adapter`.

        Raises:
            AdapterError: The name is taken.
            ConfigError: The method differs from the first adapter's, or an option doesn't fit.
        """
        refuse_sharded(self, f"add adapter {adapter_name!r}", BEFORE_SHARDING)
        own = next(iter(self.peft_config.values()), None)
        if own is not None and own.peft_type != peft_config.peft_type:
            raise ConfigError(
                f"Cannot combine adapters with different peft types. Found {own.peft_type} and {peft_config.peft_type}."
            )
        self.add_task_head(peft_config, self.get_base_model())
        name_base(peft_config, self.get_base_model())
        self.tuner.add_adapter(
            adapter_name,
            peft_config,
            low_cpu_mem_usage=low_cpu_mem_usage,
            autocast_adapter_dtype=autocast_adapter_dtype,
        )

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Use one adapter (or the sum of several), and train only it.

        Raises:
            AdapterError: There is no adapter of that name.
        """
        reshard(self)
        self.tuner.set_adapter(adapter_name, inference_mode)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Let adapters train, or freeze them, whether in use or not.

        Raises:
            AdapterError: There is no adapter of that name.
            TrainsInUseOnlyError: The method trains what is in use and nothing else, as soft prompts do.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        reshard(self)
        self.tuner.set_requires_grad(names, requires_grad=requires_grad)

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
        svd_clamp: float | None = None,
        svd_full_matrices: bool = True,
        svd_driver: str | None = None,
        density: float | None = None,
        majority_sign_method: str = "total",
    ) -> None:
        """Add the weighted combination of adapters as a new one, frozen and not in use.

        Args:
            adapters: Which ones.
            weights: One for each; a negative one negates what the adapter adds.
            adapter_name: The new adapter's name.
            combination_type: How, for LoRA; see `arithmetic/combination.py`. IA3's factors are summed up.
            svd_rank: See `Combination` there, as for all that follows.
            svd_clamp: See there.
            svd_full_matrices: See there.
            svd_driver: See there.
            density: See there.
            majority_sign_method: See there, `sign`.

        Raises:
            AdapterError: An adapter isn't loaded; the name is taken; or several have a copy of the same module.
            ConfigError: An option is wrong, or an adapter has no sum.
        """
        refuse_sharded(self, f"add adapter {adapter_name!r}", BEFORE_SHARDING)
        how = Combination(
            combination_type,
            svd_rank,
            svd_clamp,
            svd_full_matrices,
            svd_driver,
            density,
            majority_sign_method,
        )
        add_weighted_adapter(self.tuner, adapters, weights, adapter_name, how)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter. If it was in use, the oldest remaining one takes its place, which a warning says.

        Raises:
            AdapterError: There is no adapter of that name, or it is merged.
        """
        refuse_sharded(self, f"delete adapter {adapter_name!r}", "Use another one with set_adapter")
        remaining = [name for name in self.active_adapters if name != adapter_name]
        self.tuner.delete_adapter(adapter_name)
        if self.active_adapters != remaining:
            now = self.active_adapter
            message = f"Adapter {adapter_name} was active which is now deleted. In use is {now}."
            warnings.warn(message, PeftWarning, stacklevel=2)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within this context the model is exactly its base, merged or not."""
        was_enabled = self.tuner.enabled
        if was_enabled is None:
            warnings.warn(
                "The model contains some adapter layers that are enabled and others that are disabled. "
                "All of them will be enabled after this context.",
                PeftWarning,
                stacklevel=3,
            )
        reshard(self)
        self.tuner.enable_adapters(enabled=False)
        try:
            yield
        finally:
            reshard(self)
            self.tuner.enable_adapters(enabled=was_enabled is not False)

    def using(
        self, adapter_names: str | Sequence[str], *, merged: bool = False
    ) -> AbstractContextManager[None]:
        """Within this context the model uses other adapters; afterwards everything is as before.

        Switching takes microseconds. With `merged=True` it takes one pass over the targeted weights, and calls then
        cost what the base alone costs; the base is bit-identical afterwards. Room for the merged weights is kept for
        the next time. Like `set_adapter` it concerns the model, so all threads that use it.

        Args:
            adapter_names: One, or several whose updates add up; `"__base__"` for the base alone.
            merged: Write them into the base's weights meanwhile; what isn't in the weights, such as a soft prompt, is
                used as ever.

        Raises:
            AdapterError: There is no adapter of that name; adapters are merged already; several are named, and the
                method has no sum; or an adapter in the layers has no merged form.
        """
        if merged:
            refuse_sharded(self, "merge adapters", IN_ONE_PROCESS)
        return resharding(self, self.tuner.using(adapter_names, merged=merged))

    # -- accounting

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """The number of parameters that train, and of all, the adapters' included."""
        return count_parameters(self)

    def print_trainable_parameters(self) -> None:
        """Print the two counts and their ratio, on one line, as HF PEFT does."""
        print(accounting_line(*self.get_nb_trainable_parameters()))

    # -- running

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base with the adapters in use.

        Args:
            *args: Passed to the base.
            **kwargs: Passed to the base, but for `adapter_names`: an adapter for each sample instead of those in use,
                `"__base__"` for none; see `per_sample.py`.
        """
        adapter_names = kwargs.pop("adapter_names", None)
        if self.tuner.own_tables:
            refuse_sharded(self, "use an adapter's own embedding tables", "Use DistributedDataParallel")
        with (
            each_with_its_own(self.tuner, adapter_names, args, kwargs),
            self.tuner.applied(self.base_model),
        ):
            return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The base's own generation, with the adapters in use; arguments as for `forward`."""
        base: Any = self.get_base_model()
        adapter_names = kwargs.pop("adapter_names", None)
        with (
            torch.no_grad(),
            each_with_its_own(self.tuner, adapter_names, args, kwargs, many_steps=True),
            self.tuner.applied(self.base_model),
        ):
            return base.generate(*args, **kwargs)

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether the base takes further arguments about its loss, which trainers ask before they pass any."""
        base = self.get_base_model()
        declared = getattr(base, "accepts_loss_kwargs", None)
        if declared is not None:
            return bool(declared)
        parameters = inspect.signature(base.forward).parameters.values()
        return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)

    def get_base_model(self) -> nn.Module:
        """The user's model; its layers carry the adapters."""
        return self.tuner.model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_modules" not in self.__dict__ or "base_model" not in self._modules:
                raise
            return getattr(self.base_model, name)

    # -- merging

    def merge_adapter(
        self,
        adapter_names: Sequence[str] | None = None,
        safe_merge: bool = False,
        *,
        low_memory: bool = False,
    ) -> None:
        """Write adapters into the base's weights, so that inference costs nothing extra.

        `unmerge_adapter` restores the base bit for bit. `low_memory=True` keeps no copy for that; a warning
        then states how far the base will be off after unmerging.

        Raises:
            AdapterError: An adapter isn't loaded; or, with `safe_merge`, the weights would not be finite.
        """
        refuse_sharded(self, "merge adapters", IN_ONE_PROCESS)
        self.tuner.merge_adapter(adapter_names, safe_merge, low_memory=low_memory)

    def unmerge_adapter(self) -> None:
        """Take every merged adapter out of the base's weights again."""
        self.tuner.unmerge_adapter()

    def _need_layers(self, what: str) -> None:
        if not self.tuner.in_layers:
            raise NotInLayersError(
                f"{what}: a soft prompt ({self.active_peft_config.peft_type}) isn't in the base's layers, so there is "
                "nothing to merge or take out. get_base_model() is the base."
            )
        refuse_sharded(self, what, IN_ONE_PROCESS)

    def unload(self) -> nn.Module:
        """Detach without a trace, and give back the base."""
        self._need_layers("unload")
        return self.tuner.unload()

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> nn.Module:
        """Write adapters into the weights for good, and give back the plain model."""
        self._need_layers("merge_and_unload")
        return self.tuner.merge_and_unload(progressbar, safe_merge, adapter_names)
