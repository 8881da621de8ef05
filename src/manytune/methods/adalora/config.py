"""AdaLoRA's options."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manytune.errors import ConfigError, PeftWarning
from manytune.methods.config import PeftType
from manytune.methods.lora.config import LoraConfig

_UNPLANNED = sys.maxsize  # in place of a number of steps that isn't known yet


@dataclass
class AdaLoraConfig(LoraConfig):
    """AdaLoRA: y = W x + s · B diag(E) A x, and of all the E in the model only the most important ones stay.

    Zhang et al., arXiv 2303.10512. Each layer starts with `init_r` triplets (a row of A, an entry of E, a column of B).
    From step `tinit` on, the number kept in the whole model falls along a cubic curve until it is `target_r` for
    each layer on average, at step `total_step - tfinal`; from then on the choice is final.

    Args:
        target_r: The rank of a layer in the end, on average.
        init_r: The rank of each layer at first.
        tinit: Steps before ranks are cut.
        tfinal: Steps after the last cut.
        deltaT: Steps from one cut to the next.
        beta1: How much of the former average a triplet's importance keeps at each step.
        beta2: The same for the importance's uncertainty.
        orth_reg_weight: Weight of the penalty that keeps the rows of A and the columns of B orthonormal.
        total_step: How many steps the training has.
        rank_pattern: Which triplets are kept, by layer: `<path>.lora_E` to `init_r` booleans. Training fills it in.

    LoRA's fields mean what they mean there, and scaling is lora_alpha / init_r. `r` isn't used. Options that AdaLoRA
    has no use for must stay at their defaults.

    Raises:
        ConfigError: An option's value can't be used, contradicts another, or isn't implemented.
    """

    target_r: int = 8
    init_r: int = 12
    tinit: int = 0
    tfinal: int = 0
    deltaT: int = 1  # noqa: N815 - HF PEFT's name
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.5
    total_step: int | None = None
    rank_pattern: dict[str, list[bool]] | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        # LoRA's rank pattern is another thing of the same name.
        pattern, self.rank_pattern = self.rank_pattern, {}
        super().__post_init__()
        self.rank_pattern = pattern
        self.peft_type = PeftType.ADALORA
        self._check_unused()
        self._check_budget()
        self._check_schedule()
        self._check_pattern()

    @classmethod
    def unplanned(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """See `PeftConfig.unplanned`: the budget falls over the whole training, unless `total_step` says otherwise."""
        found = super().unplanned(options)
        if found.get("total_step") is None:
            found["total_step"] = _UNPLANNED
        return found

    def plan_steps(self, steps: int) -> None:
        """Take in how many steps the training has.

        Raises:
            ConfigError: The last cut comes after it, or no step is left to cut at.
        """
        if self.total_step == _UNPLANNED:
            self.total_step = steps
            self._check_schedule()
        if self.final_step > steps:
            raise ConfigError(
                f"AdaLoRA's last cut is at step {self.final_step} (total_step less tfinal) and the training has "
                f"{steps} steps, so the ranks would never come down to target_r. Set method.total_step to {steps}."
            )

    def rank_at(self, path: str) -> int:
        """The rank at the layer of a path: how many triplets `rank_pattern` keeps of the `init_r`."""
        kept = (self.rank_pattern or {}).get(f"{path}.lora_E")
        return self.init_r if kept is None else sum(kept)

    def scaling_at(self, path: str) -> float:
        """s, the same for all layers and ranks: alpha / init_r, as HF PEFT computes it."""
        return svd_scaling(self.alpha, self.init_r)

    @property
    def alpha(self) -> float:
        """`lora_alpha`, or `init_r` if that isn't positive, so that s is 1."""
        return self.lora_alpha if self.lora_alpha > 0 else float(self.init_r)

    @property
    def final_step(self) -> int:
        """The step of the last cut."""
        assert self.total_step is not None
        return self.total_step - self.tfinal

    def _check_unused(self) -> None:
        if self.r != 8:
            warnings.warn(
                "Note that `r` is not used in AdaLora and will be ignored. If you intended to set the initial rank, "
                "use `init_r` instead.",
                PeftWarning,
                stacklevel=4,
            )
        unused = {
            "use_dora": False,
            "use_rslora": False,
            "lora_bias": False,
            "freeze_a": False,
            "alpha_pattern": {},
            "target_parameters": [],
        }
        for name, default in unused.items():
            value = getattr(self, name)
            if value != default and value is not None:
                raise ConfigError(
                    f"AdaLoraConfig({name}={value!r}): AdaLoRA does not support this option of LoRA. Leave it at its "
                    f"default, {default!r}."
                )
        if not isinstance(self.init_lora_weights, bool):
            raise ConfigError(
                f"AdaLoraConfig(init_lora_weights={self.init_lora_weights!r}): AdaLoRA starts in one way only. Use "
                "True, or False for random values."
            )

    def _check_budget(self) -> None:
        for name in ("target_r", "init_r", "deltaT"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
                raise ConfigError(
                    f"`{name}` should be a positive integer value but the value passed is {value!r}."
                )
        # A file may hold anything that was trained once.
        if self.target_r > self.init_r and not self.inference_mode:
            raise ConfigError(
                f"target_r={self.target_r} is above init_r={self.init_r}, and ranks are only ever cut. Raise init_r."
            )
        for name in ("beta1", "beta2"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(f"`{name}` lies between 0 and 1, found {getattr(self, name)!r}.")
        if self.orth_reg_weight < 0:
            raise ConfigError(
                "`orth_reg_weight` should be greater than or equal to 0, but the value passed is "
                f"{self.orth_reg_weight}"
            )

    def _check_schedule(self) -> None:
        if self.total_step is None or self.total_step <= 0:
            raise ConfigError("AdaLoRA does not work when `total_step` is None, supply a value > 0.")
        if self.tinit < 0 or self.tfinal < 0:
            raise ConfigError(f"tinit={self.tinit}, tfinal={self.tfinal}: neither can be negative.")
        if self.tinit >= self.final_step:
            raise ConfigError(
                "The supplied schedule values don't allow for a budgeting phase. Decrease `tfinal`/`tinit` or "
                f"increase `total_step`: tinit={self.tinit}, tfinal={self.tfinal}, total_step={self.total_step}."
            )

    def _check_pattern(self) -> None:
        for key, kept in (self.rank_pattern or {}).items():
            if not isinstance(kept, list) or len(kept) != self.init_r:
                raise ConfigError(
                    f"rank_pattern[{key!r}]: expected a list of init_r={self.init_r} booleans, found {kept!r}."
                )


def svd_scaling(alpha: float, init_r: float) -> float:
    """The factor s = alpha / (init_r + 1e-5)."""
    return alpha / (init_r + 1e-5)
