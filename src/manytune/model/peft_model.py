"""A model with adapters and files: the object that users hold."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from manytune.errors import AdapterError
from manytune.methods.checkpoint.card import write_card
from manytune.methods.checkpoint.format import LoadResult
from manytune.methods.config import CONFIG_NAME, PeftConfig
from manytune.methods.tuners.attached import refuse_attached
from manytune.methods.tuners.unsupported import TrainsInUseOnlyError
from manytune.methods.tuners.walk import every_module
from manytune.model.adapted import AdaptedModel
from manytune.model.kbit import let_inputs_require_grad
from manytune.model.loading import check_options, hub_options, load_into
from manytune.model.recognised import RecognisedByTrainers
from manytune.model.saving import push_adapters, save_adapters
from manytune.model.status import LayerStatus, ModelStatus, get_layer_status, get_model_status
from manytune.sharded import reshard


class _BoundForward:
    """A model's `forward`, with the signature of its base's: trainers read from it which columns a model takes."""

    def __init__(self, model: AdaptedModel) -> None:
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return AdaptedModel.forward(self._model, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._model.get_base_model().forward)


class _Forward:
    """`forward` of a class that doesn't know its base's signature, and of its objects, which do."""

    def __get__(self, model: AdaptedModel | None, kind: type | None = None) -> Any:
        return _with_labels if model is None else _BoundForward(model)


def _with_labels(self: AdaptedModel, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
    # Trainers read the names of the labels from the class.
    given = {} if labels is None else {"labels": labels}
    return AdaptedModel.forward(self, *args, **given, **kwargs)


#: By task; `task_models.py` fills it, which the package's `__init__` imports.
_TASK_CLASSES: dict[str, type[PeftModel]] = {}


def class_for(task_type: str | None) -> type[PeftModel]:
    """The class that wraps a model for a task; `PeftModel` itself for none."""
    return _TASK_CLASSES.get(task_type or "", PeftModel)


class PeftModel(RecognisedByTrainers, AdaptedModel):
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

    def __init_subclass__(cls, *, task_type: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if task_type is not None:
            _TASK_CLASSES[task_type] = cls

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig,
        adapter_name: str = "default",
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
    ) -> None:
        # What transformers' `is_activation_checkpointing` says, at a tenth of the time.
        recomputes = any(vars(module).get("gradient_checkpointing", False) for module in every_module(model))
        super().__init__(model, peft_config, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)
        if recomputes:
            self.prepare_model_for_gradient_checkpointing(model)

    forward = _Forward()

    # -- files

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        selected_adapters: Sequence[str] | None = None,
        save_embedding_layers: bool | Literal["auto"] = "auto",
        is_main_process: bool = True,
        path_initial_model_for_weight_conversion: str | Path | None = None,
        *,
        state_dict: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write adapters in HF PEFT's format.

        The adapter `default` goes into the directory itself, others into one of their name within it.

        Args:
            save_directory: Created if need be.
            safe_serialization: Must be True; pickle isn't written.
            selected_adapters: Which ones; all by default.
            save_embedding_layers: Whether to save the input and output embeddings too; `"auto"` if the adapter targets
                one of them or has one of its own, or if the vocabulary isn't that of the base's `config.json`.
            is_main_process: Whether this process writes; of several one should. All must call this where FSDP2 shards
                the model, unless the main one passes `state_dict`; the first process writes then.
            path_initial_model_for_weight_conversion: Directory with a PiSSA or OLoRA adapter as it was before its
                training; it is then written as a plain LoRA adapter of twice the rank. The model stays as it is.
            state_dict: What to write the adapters from: the state dict of the whole model with its adapters, such as
                `accelerator.get_state_dict(model)` gives to the main process.

        Raises:
            AdapterError: An adapter isn't loaded.
            CheckpointError: `safe_serialization` is False, or `state_dict` lacks tensors of an adapter.
            ConfigError: The adapter can't be converted.
        """
        save_adapters(
            self,
            save_directory,
            safe_serialization=safe_serialization,
            selected_adapters=selected_adapters,
            save_embedding_layers=save_embedding_layers,
            initial=path_initial_model_for_weight_conversion,
            is_main_process=is_main_process,
            state_dict=state_dict,
        )

    def create_or_update_model_card(self, output_dir: str | Path) -> None:
        """Write the README.md of a directory of adapters, or bring its metadata up to date.

        Raises:
            CheckpointError: The one that is there can't be read.
        """
        write_card(Path(output_dir), self.get_base_model(), self.active_peft_config)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Upload the adapters to a hub.

        Args:
            repo_id: Where to, such as `user/adapter`; created if need be.
            commit_message: What the hub's history says.
            private: Whether a new repository is private.
            token: The hub's token; by default the one that was logged in with.
            revision: The branch.
            create_pr: Propose the upload rather than make it.
            **kwargs: See `save_pretrained`.

        Returns:
            What the hub says about the commit.
        """
        return push_adapters(
            self,
            repo_id,
            commit_message=commit_message,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            **kwargs,
        )

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        autocast_adapter_dtype: bool = True,
        ephemeral_gpu_offload: bool = False,
        low_cpu_mem_usage: bool = False,
        key_mapping: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Attach a saved adapter to its base.

        Args:
            model: The base.
            model_id: The adapter's directory, or its id on a hub.
            adapter_name: What to call it.
            is_trainable: Whether to train it further; otherwise it is frozen.
            config: Options to use instead of the saved ones; this very object is kept.
            autocast_adapter_dtype: Keep adapter weights in float32 on a half-precision base.
            ephemeral_gpu_offload: See `load_adapter`, as for all that follows.
            low_cpu_mem_usage: See there.
            key_mapping: See there.
            **kwargs: See there; and `torch_device`.

        Raises:
            CheckpointError: A file is missing or damaged, or a tensor in it fits nothing in the model.
            ShapeMismatchError: A tensor has another shape than the model's.
            AdapterError: Adapters are attached to the base already.
            TypeError: An option isn't known.
        """
        device = kwargs.pop("torch_device", None)
        check_options(model, kwargs)
        refuse_attached(model)
        if config is None:
            config = PeftConfig.from_pretrained(model_id, kwargs.get("subfolder"), **hub_options(kwargs))
        config.as_saved().inference_mode = not is_trainable
        config.borrow_accelerator(ephemeral_gpu_offload)
        kind: type[PeftModel] = class_for(config.task_type) if cls is PeftModel else cls
        wrapped = kind(
            model, config, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage=low_cpu_mem_usage
        )
        options = {"low_cpu_mem_usage": low_cpu_mem_usage, "key_mapping": key_mapping, "torch_device": device}
        try:
            load_into(wrapped.tuner, model_id, adapter_name, **options, **kwargs)
        except BaseException:
            # Full fine-tuning in place (keep_base=False) has no way back.
            with suppress(AdapterError):
                wrapped.tuner.unload()
            raise
        if not is_trainable:
            wrapped.eval()
        return wrapped  # type: ignore[return-value]

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str,
        is_trainable: bool = False,
        torch_device: str | torch.device | None = None,
        autocast_adapter_dtype: bool = True,
        ephemeral_gpu_offload: bool = False,
        low_cpu_mem_usage: bool = False,
        key_mapping: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> LoadResult:
        """Add a saved adapter. It isn't used until `set_adapter`.

        Args:
            model_id: The adapter's directory, or its id on a hub.
            adapter_name: A name for it. An adapter of that name gets the saved weights, and keeps its options; if the
                directory, as `save_pretrained` writes it, has an adapter of that name within it, it is that one's.
            is_trainable: Whether it trains at once, in use or not.
            torch_device: Where to read the file to; the adapter itself goes where its layers of the base are.
            autocast_adapter_dtype: Keep adapter weights in float32 on a half-precision base.
            ephemeral_gpu_offload: See `LoraRuntimeConfig`.
            low_cpu_mem_usage: Make the adapter's weights on the meta device, and let the file bring them.
            key_mapping: For names from an older version of the base: regular expressions and what to write in their
                place, after `base_model.model.`; by default what transformers says about the base's own files.
            **kwargs: `ignore_mismatched_sizes` to leave out tensors of another shape; `strict=True` to refuse a file
                that lacks tensors of the adapter; `subfolder`; options for a hub such as `revision`. `device_map` and
                HF PEFT's other options that place a base are accepted; the base stays where it is.

        Raises:
            CheckpointError: A file is missing or damaged, or a tensor in it fits nothing in the model.
            TypeError: An option isn't known.
        """
        check_options(self.get_base_model(), kwargs)
        fresh = adapter_name not in self.peft_config
        if (
            not fresh
            and "subfolder" not in kwargs
            and (Path(model_id) / adapter_name / CONFIG_NAME).is_file()
        ):
            # The Trainer names the whole checkpoint, whichever adapter it trains.
            kwargs["subfolder"] = adapter_name
        if fresh:
            config = PeftConfig.from_pretrained(model_id, kwargs.get("subfolder"), **hub_options(kwargs))
            config.inference_mode = not is_trainable
            config.borrow_accelerator(ephemeral_gpu_offload)
            self.add_adapter(adapter_name, config, low_cpu_mem_usage, autocast_adapter_dtype)
        options: dict[str, Any] = {"low_cpu_mem_usage": low_cpu_mem_usage, "key_mapping": key_mapping}
        reshard(self)
        try:
            result = load_into(
                self.tuner, model_id, adapter_name, torch_device=torch_device, **options, **kwargs
            )
        except BaseException:
            if fresh:
                self.tuner.delete_adapter(adapter_name)
            raise
        if fresh and is_trainable and self.tuner.in_layers:
            with suppress(TrainsInUseOnlyError):
                self.set_requires_grad(adapter_name)
        if self.training and not is_trainable:
            self.eval()
        return result

    # -- state

    def get_layer_status(self) -> list[LayerStatus]:
        """The state of each layer with adapters; see `status.py`."""
        return get_layer_status(self)

    def get_model_status(self) -> ModelStatus:
        """The state of all layers with adapters, in one."""
        return get_model_status(self)

    # -- training

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """The same as `activation_checkpointing_enable`, by transformers' former name."""
        options = kwargs.pop("gradient_checkpointing_kwargs", None)
        given = {} if options is None else {"activation_checkpointing_kwargs": options}
        self.activation_checkpointing_enable(*args, **given, **kwargs)

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Recompute activations in the backward pass rather than keep them; arguments as the base takes them.

        Raises:
            ConfigError: The method's adapters wouldn't be seen by layers that are recomputed.
        """
        self.tuner.refuse_checkpointing(planned=True)
        base: Any = self.get_base_model()
        enable: Any = getattr(base, "activation_checkpointing_enable", None)
        if enable is None:
            kwargs = {name.replace("activation_", "gradient_"): value for name, value in kwargs.items()}
            enable = base.gradient_checkpointing_enable
        enable(*args, **kwargs)
        self.prepare_model_for_gradient_checkpointing(base)

    def prepare_model_for_gradient_checkpointing(self, model: nn.Module) -> nn.Module:
        """Let gradients reach a model's layers, which reentrant checkpointing needs; gives back the model."""
        let_inputs_require_grad(model)
        return model
