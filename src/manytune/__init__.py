"""One frozen base model, many small fine-tunes.

The names in `__all__` are the public ones. Those that need a model library are imported from their modules
when they are first used, so that `import manytune` itself stays light. Names that HF PEFT has too mean the
same here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from manytune.errors import (
    AdapterError,
    BaseMismatchError,
    CheckpointError,
    ConfigError,
    DataError,
    DataWarning,
    ManytuneError,
    NoMatchingPeftModuleError,
    PeftError,
    PeftWarning,
    RecipeError,
    RunError,
    StoreError,
    TemplateError,
)

if TYPE_CHECKING:
    from manytune.methods.adalora.config import AdaLoraConfig as AdaLoraConfig
    from manytune.methods.bottleneck.model import BottleneckConfig as BottleneckConfig
    from manytune.methods.combined import CombinedConfig as CombinedConfig
    from manytune.methods.config import PeftConfig as PeftConfig
    from manytune.methods.config import PeftType as PeftType
    from manytune.methods.config import PromptLearningConfig as PromptLearningConfig
    from manytune.methods.config import TaskType as TaskType
    from manytune.methods.full.model import FullConfig as FullConfig
    from manytune.methods.ia3.model import IA3Config as IA3Config
    from manytune.methods.lora.config import LoraConfig as LoraConfig
    from manytune.methods.lora.config import LoraRuntimeConfig as LoraRuntimeConfig
    from manytune.methods.lora.plus import lora_plus_groups as lora_plus_groups
    from manytune.methods.p_tuning.model import PromptEncoderConfig as PromptEncoderConfig
    from manytune.methods.p_tuning.model import (
        PromptEncoderReparameterizationType as PromptEncoderReparameterizationType,
    )
    from manytune.methods.prefix_tuning.model import PrefixTuningConfig as PrefixTuningConfig
    from manytune.methods.prompt_tuning.model import PromptTuningConfig as PromptTuningConfig
    from manytune.methods.prompt_tuning.model import PromptTuningInit as PromptTuningInit
    from manytune.methods.selective import SelectiveConfig as SelectiveConfig
    from manytune.methods.trainable_tokens import TrainableTokensConfig as TrainableTokensConfig
    from manytune.methods.vera.model import VeraConfig as VeraConfig
    from manytune.model.activations import float32_activations as float32_activations
    from manytune.model.attach import get_peft_model as get_peft_model
    from manytune.model.auto import AutoPeftModel as AutoPeftModel
    from manytune.model.auto import AutoPeftModelForCausalLM as AutoPeftModelForCausalLM
    from manytune.model.auto import AutoPeftModelForFeatureExtraction as AutoPeftModelForFeatureExtraction
    from manytune.model.auto import AutoPeftModelForQuestionAnswering as AutoPeftModelForQuestionAnswering
    from manytune.model.auto import AutoPeftModelForSeq2SeqLM as AutoPeftModelForSeq2SeqLM
    from manytune.model.auto import (
        AutoPeftModelForSequenceClassification as AutoPeftModelForSequenceClassification,
    )
    from manytune.model.auto import (
        AutoPeftModelForTokenClassification as AutoPeftModelForTokenClassification,
    )
    from manytune.model.inject import inject_adapter_in_model as inject_adapter_in_model
    from manytune.model.kbit import prepare_model_for_kbit_training as prepare_model_for_kbit_training
    from manytune.model.mixed import PeftMixedModel as PeftMixedModel
    from manytune.model.peft_model import PeftModel as PeftModel
    from manytune.model.state_dicts import get_peft_model_state_dict as get_peft_model_state_dict
    from manytune.model.state_dicts import set_peft_model_state_dict as set_peft_model_state_dict
    from manytune.model.status import get_layer_status as get_layer_status
    from manytune.model.status import get_model_status as get_model_status
    from manytune.model.task_models import PeftModelForCausalLM as PeftModelForCausalLM
    from manytune.model.task_models import PeftModelForFeatureExtraction as PeftModelForFeatureExtraction
    from manytune.model.task_models import PeftModelForQuestionAnswering as PeftModelForQuestionAnswering
    from manytune.model.task_models import PeftModelForSeq2SeqLM as PeftModelForSeq2SeqLM
    from manytune.model.task_models import (
        PeftModelForSequenceClassification as PeftModelForSequenceClassification,
    )
    from manytune.model.task_models import (
        PeftModelForTokenClassification as PeftModelForTokenClassification,
    )
    from manytune.model.trainer_checkpoints import AdapterCheckpoints as AdapterCheckpoints
    from manytune.store.base import load_base as load_base

__version__ = "0.1.0"

__all__ = [
    "AdaLoraConfig",
    "AdapterCheckpoints",
    "AdapterError",
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
    "BaseMismatchError",
    "BottleneckConfig",
    "CheckpointError",
    "CombinedConfig",
    "ConfigError",
    "DataError",
    "DataWarning",
    "FullConfig",
    "IA3Config",
    "LoraConfig",
    "LoraRuntimeConfig",
    "ManytuneError",
    "NoMatchingPeftModuleError",
    "PeftConfig",
    "PeftError",
    "PeftMixedModel",
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
    "PeftType",
    "PeftWarning",
    "PrefixTuningConfig",
    "PromptEncoderConfig",
    "PromptEncoderReparameterizationType",
    "PromptLearningConfig",
    "PromptTuningConfig",
    "PromptTuningInit",
    "RecipeError",
    "RunError",
    "SelectiveConfig",
    "StoreError",
    "TaskType",
    "TemplateError",
    "TrainableTokensConfig",
    "VeraConfig",
    "float32_activations",
    "get_layer_status",
    "get_model_status",
    "get_peft_model",
    "get_peft_model_state_dict",
    "inject_adapter_in_model",
    "load_base",
    "lora_plus_groups",
    "prepare_model_for_kbit_training",
    "set_peft_model_state_dict",
]

# Where each name that isn't imported above comes from.
_LAZY = {
    "AdaLoraConfig": "manytune.methods.adalora.config",
    "AdapterCheckpoints": "manytune.model.trainer_checkpoints",
    "AutoPeftModel": "manytune.model.auto",
    "AutoPeftModelForCausalLM": "manytune.model.auto",
    "AutoPeftModelForFeatureExtraction": "manytune.model.auto",
    "AutoPeftModelForQuestionAnswering": "manytune.model.auto",
    "AutoPeftModelForSeq2SeqLM": "manytune.model.auto",
    "AutoPeftModelForSequenceClassification": "manytune.model.auto",
    "AutoPeftModelForTokenClassification": "manytune.model.auto",
    "BottleneckConfig": "manytune.methods.bottleneck.model",
    "CombinedConfig": "manytune.methods.combined",
    "FullConfig": "manytune.methods.full.model",
    "IA3Config": "manytune.methods.ia3.model",
    "LoraConfig": "manytune.methods.lora.config",
    "LoraRuntimeConfig": "manytune.methods.lora.config",
    "PeftConfig": "manytune.methods.config",
    "PeftMixedModel": "manytune.model.mixed",
    "PeftModel": "manytune.model.peft_model",
    "PeftModelForCausalLM": "manytune.model.task_models",
    "PeftModelForFeatureExtraction": "manytune.model.task_models",
    "PeftModelForQuestionAnswering": "manytune.model.task_models",
    "PeftModelForSeq2SeqLM": "manytune.model.task_models",
    "PeftModelForSequenceClassification": "manytune.model.task_models",
    "PeftModelForTokenClassification": "manytune.model.task_models",
    "PeftType": "manytune.methods.config",
    "PrefixTuningConfig": "manytune.methods.prefix_tuning.model",
    "PromptEncoderConfig": "manytune.methods.p_tuning.model",
    "PromptEncoderReparameterizationType": "manytune.methods.p_tuning.model",
    "PromptLearningConfig": "manytune.methods.config",
    "PromptTuningConfig": "manytune.methods.prompt_tuning.model",
    "PromptTuningInit": "manytune.methods.prompt_tuning.model",
    "SelectiveConfig": "manytune.methods.selective",
    "TaskType": "manytune.methods.config",
    "TrainableTokensConfig": "manytune.methods.trainable_tokens",
    "VeraConfig": "manytune.methods.vera.model",
    "float32_activations": "manytune.model.activations",
    "get_layer_status": "manytune.model.status",
    "get_model_status": "manytune.model.status",
    "get_peft_model": "manytune.model.attach",
    "get_peft_model_state_dict": "manytune.model.state_dicts",
    "inject_adapter_in_model": "manytune.model.inject",
    "load_base": "manytune.store.base",
    "lora_plus_groups": "manytune.methods.lora.plus",
    "prepare_model_for_kbit_training": "manytune.model.kbit",
    "set_peft_model_state_dict": "manytune.model.state_dicts",
}


# HF PEFT's module paths, such as `peft.tuners.lora.LoraLayer`.
_PEFTS_PACKAGES = {"tuners", "utils"}


def __getattr__(name: str) -> object:
    """Import a public name from its module when it is first used (PEP 562)."""
    if name in _PEFTS_PACKAGES:
        return import_module(f"manytune.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
