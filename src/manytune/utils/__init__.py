"""HF PEFT's module path to what code imports from `peft.utils`."""

from manytune.methods.config import PeftType, TaskType
from manytune.methods.tuners.saved_modules import ModulesToSaveWrapper
from manytune.model.kbit import prepare_model_for_kbit_training
from manytune.model.state_dicts import get_peft_model_state_dict, set_peft_model_state_dict
from manytune.utils import other as other

__all__ = [
    "ModulesToSaveWrapper",
    "PeftType",
    "TaskType",
    "get_peft_model_state_dict",
    "prepare_model_for_kbit_training",
    "set_peft_model_state_dict",
]
