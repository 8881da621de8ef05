"""The recipe's section on the method: its name, and the options of its configuration class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator

from manytune.methods.registry import check_options, method_options, methods, peft_config_from
from manytune.training.other_names import called_here, method_called_here

if TYPE_CHECKING:
    from manytune.methods.config import PeftConfig

NAMES_ALONE = "names alone"
"""As the context of a validation: of the method only the names are checked, for which no torch has to be imported."""


class MethodRecipe(BaseModel):
    """What is trained: the method's name, and with it the options of its configuration class."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str = "lora"
    """`lora`, `full`, or another method of manytune.methods."""

    @model_validator(mode="after")
    def _options_exist(self, info: ValidationInfo) -> Self:
        options, known = self.model_extra or {}, method_options()
        if self.name not in known and (written := method_called_here(self.name)):
            raise ValueError(f"{written}.")
        for option in options if self.name in known else ():
            if option not in known[self.name] and (renamed := called_here(option)):
                raise ValueError(f"Method {self.name!r} has no option {option!r}; {renamed}.")
        check_options(self.name, options, known)
        if info.context != NAMES_ALONE:
            self.peft_config().check_trains()
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
