"""HF PEFT's module path to the wrappers of modules that are trained in full, and to FSDP's policy."""

from manytune.methods.tuners.saved_modules import ModulesToSaveWrapper
from manytune.model.wrap_policy import fsdp_auto_wrap_policy

AuxiliaryTrainingWrapper = ModulesToSaveWrapper

__all__ = ["AuxiliaryTrainingWrapper", "ModulesToSaveWrapper", "fsdp_auto_wrap_policy"]
