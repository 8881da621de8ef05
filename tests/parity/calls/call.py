"""Scripts of a few lines with odd options, for what the matrix has no row or column for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tests.parity.bases import LLAMA, Base
from tests.parity.observed import Seen
from tests.parity.session import first_output, scatter, trainable
from torch import Tensor

Script = Callable[[Any, Path, Seen], None]


@dataclass(frozen=True)
class Call:
    """One script.

    Attributes:
        script: Runs with a library, in an empty folder, and notes what it sees.
        differs: Observations that differ on purpose, by the difference's id in `docs/migrating-from-peft.md`.
    """

    script: Script = field(hash=False)
    differs: dict[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        return self.script.__name__


CALLS: list[Call] = []


def call(script: Script) -> Script:
    """A script in which nothing differs."""
    CALLS.append(Call(script))
    return script


def differs(**observations: str | tuple[str, ...]) -> Callable[[Script], Script]:
    """A script in which something differs on purpose.

    Args:
        **observations: Which observations, by the difference's id with `_` for `-`.
    """
    expected = {
        key.replace("_", "-"): (found,) if isinstance(found, str) else found
        for key, found in observations.items()
    }

    def register(script: Script) -> Script:
        CALLS.append(Call(script, expected))
        return script

    return register


# -- what the scripts share


def lora(peft: Any, **options: Any) -> Any:
    """LoRA's options on the Llama of the matrix."""
    return peft.LoraConfig(
        **{"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | options
    )


def attached(peft: Any, base: Base = LLAMA, name: str = "default", **options: Any) -> Any:
    """A base with an adapter that does something."""
    torch.manual_seed(3)
    model = peft.get_peft_model(base.build(), lora(peft, **options), name)
    scatter(model)
    return model.eval()


def added(peft: Any, model: Any, name: str, **options: Any) -> Any:
    """The same, with one more adapter that does something, in use."""
    torch.manual_seed(4)
    model.add_adapter(name, lora(peft, **options))
    model.set_adapter(name)
    scatter(model, seed=len(model.peft_config))
    return model.eval()


def saved(peft: Any, directory: Path, **options: Any) -> str:
    """A folder with an adapter."""
    attached(peft, **options).save_pretrained(str(directory))
    return str(directory)


def logits(model: Any, base: Base = LLAMA, **more: Any) -> Tensor:
    """What a model makes of the ids of the matrix."""
    inputs = {k: v for k, v in base.inputs().items() if k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return first_output(model(**inputs, **more))


def trains(model: Any) -> list[str]:
    """The names of what trains."""
    return sorted(trainable(model))
