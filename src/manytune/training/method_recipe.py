"""The recipe's section on the method: its name, and the options of its configuration class."""

from __future__ import annotations

import dataclasses
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from manytune.methods.config import PeftConfig
from manytune.methods.registry import methods, peft_config_from
from manytune.training.other_names import called_here


class MethodRecipe(BaseModel):
    """What is trained: the method's name, and with it the options of its configuration class."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, use_attribute_docstrings=True)

    name: str = "lora"
    """`lora`, `full`, or another method of manytune.methods."""

    @model_validator(mode="after")
    def _options_exist(self) -> Self:
        options = self.model_extra or {}
        if self.name in methods():
            known = {field.name for field in dataclasses.fields(methods()[self.name].config)}
            for option in options:
                if option not in known and (renamed := called_here(option)):
                    raise ValueError(f"Method {self.name!r} has no option {option!r}; {renamed}.")
        self.peft_config()
        return self

    def peft_config(self, task_type: str = "CAUSAL_LM") -> PeftConfig:
        """A new configuration object; a method that plans ahead learns its number of steps when the training begins.

        Args:
            task_type: The base's kind, unless the recipe names one: `CAUSAL_LM`, `SEQ_2_SEQ_LM` for an
                encoder-decoder, or `SEQ_CLS` for a classifier.

        Raises:
            ConfigError: The method or an option is unknown, or a value can't be used.
        """
        options = {"task_type": task_type, **(self.model_extra or {})}
        if self.name in methods():
            options = methods()[self.name].config.unplanned(options)
        return peft_config_from(self.name, **options)
