"""`get_peft_model`: a base and a configuration in, a model with an adapter out."""

from __future__ import annotations

import warnings

from torch import nn

from manytune.errors import PeftWarning
from manytune.methods.config import PeftConfig
from manytune.methods.registry import method_of
from manytune.methods.tuners.attached import refuse_attached
from manytune.model.mixed import PeftMixedModel
from manytune.model.naming import revision_of
from manytune.model.peft_model import PeftModel, class_for


def get_peft_model(
    model: nn.Module,
    peft_config: PeftConfig,
    adapter_name: str = "default",
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
) -> PeftModel:
    """Freeze a model and attach an adapter to it, in place.

    Args:
        model: The base.
        peft_config: The method and its options, such as `LoraConfig(r=8)`.
        adapter_name: The adapter's name.
        mixed: Give a `PeftMixedModel`, whatever the task.
        autocast_adapter_dtype: Keep adapter weights in float32 on a half-precision base.
        revision: The base's revision on a hub, to be stored with the adapter.
        low_cpu_mem_usage: Make the adapter's weights on the meta device; a checkpoint will bring them.

    Returns:
        The model with its adapter, in the class of its task: `PeftModelForCausalLM` and so on.

    Raises:
        NoMatchingPeftModuleError: The configuration targets no module.
        ConfigError: An option is wrong or doesn't fit the model.
        AdapterError: Adapters are attached to the model already.
    """
    refuse_attached(model)
    former = peft_config.base_model_name_or_path
    present = model.__dict__.get("name_or_path") or None
    peft_config.base_model_name_or_path = present
    if former is not None and former != present:
        warnings.warn(
            f"The PEFT config's `base_model_name_or_path` was renamed from '{former}' to '{present}'. "
            "Please ensure that the correct base model is loaded when loading this checkpoint.",
            PeftWarning,
            stacklevel=2,
        )
    if revision is not None:
        if peft_config.revision not in (None, revision):
            warnings.warn(
                f"peft config has already set base model revision to {peft_config.revision}, overwriting with "
                f"{revision}.",
                PeftWarning,
                stacklevel=2,
            )
        peft_config.revision = revision
    elif peft_config.revision is None:
        peft_config.revision = revision_of(model)
    prefix = method_of(peft_config).tuner.prefix
    if prefix and adapter_name in prefix:
        warnings.warn(
            f"Adapter name '{adapter_name}' should not be contained in the prefix '{prefix}'. "
            "This may lead to reinitialization of the adapter weights during loading.",
            PeftWarning,
            stacklevel=2,
        )
    kind = PeftMixedModel if mixed else class_for(peft_config.task_type)
    return kind(model, peft_config, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)
