"""HF PEFT's module path to the wrappers of modules that are trained in full."""

from manytune.methods.tuners.saved_modules import ModulesToSaveWrapper

AuxiliaryTrainingWrapper = ModulesToSaveWrapper

__all__ = ["AuxiliaryTrainingWrapper", "ModulesToSaveWrapper"]
