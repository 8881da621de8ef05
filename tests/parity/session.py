"""What every script of the matrix does with one library: a base, a method, two steps of training, logits, files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tests.parity.bases import Base
from tests.parity.methods import Method
from tests.parity.observed import Seen
from torch import Tensor, nn

TENSORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@dataclass
class Session:
    """One run of a script.

    Attributes:
        peft: The library.
        base: The kind of model.
        method: The method.
        directory: An empty folder of its own.
        written: Folders with this method's adapter for this base, one by each library; see `save` in `operations.py`.
        seen: What the script notes.
    """

    peft: Any
    base: Base
    method: Method
    directory: Path
    written: Mapping[str, Path] = field(default_factory=dict)
    seen: Seen = field(default_factory=Seen)

    def config(self, second: bool = False, **options: Any) -> Any:
        return getattr(self.peft, self.method.config)(**self.method.options_for(self.base, second) | options)

    def attach(self, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
        """A base with an adapter that has the values it starts with."""
        base = self.base.build(dtype)
        torch.manual_seed(3)
        return self.peft.get_peft_model(base, self.config(**options)).eval()

    def attach_trained(self, **options: Any) -> Any:
        """A base with an adapter that does something."""
        model = self.attach(**options)
        scatter(model)
        return model

    def add_trained(self, model: Any, name: str, seed: int) -> None:
        """A second adapter next to the first, in use."""
        torch.manual_seed(4)
        model.add_adapter(name, self.config(second=True))
        model.set_adapter(name)
        scatter(model, seed)
        model.eval()

    def output(self, model: Any, inputs: Mapping[str, Tensor] | None = None) -> Tensor:
        """What the model makes of the base's inputs, or of others."""
        given = self.base.inputs() if inputs is None else inputs
        with torch.no_grad():
            return first_output(model(**{k: v for k, v in given.items() if k in _INPUTS}))

    def bits(self, directory: Path) -> dict[str, list[Any]]:
        """The tensors of a file, to the bit if the method's files hold what is trained and not what it computes."""
        return {key: found[: 3 if self.method.exact else 2] for key, found in tensors(directory).items()}

    def outputs(self, name: str, model: Any) -> None:
        """Note the model's output, or that it fails."""
        self.seen.attempt(name, lambda: self.output(model))


_INPUTS = ("input_ids", "attention_mask", "labels")


def first_output(result: Any) -> Tensor:
    """Logits, of whichever name."""
    for name in ("logits", "start_logits", "last_hidden_state"):
        if getattr(result, name, None) is not None:
            found: Tensor = getattr(result, name)
            return found
    raise AssertionError(f"no output in {list(result)}")


def optimizer_for(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW whose first step isn't only the gradient's sign, which for a gradient of 1e-20 is noise."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, eps=1e-2)


def train(model: Any, base: Base, optimizer: torch.optim.Optimizer, steps: int = 2) -> list[float]:
    """Losses of some steps, as a training loop of HF PEFT's documentation makes them."""
    losses = []
    model.train()
    for step in range(steps):
        result = model(**base.inputs())
        loss = (
            result.loss if getattr(result, "loss", None) is not None else first_output(result).square().mean()
        )
        loss.backward()
        optimizer.step()
        if hasattr(model.base_model, "update_and_allocate"):  # AdaLoRA
            model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def scatter(model: nn.Module, seed: int = 9) -> None:
    """Move every parameter that trains away from where it starts, in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.add_((0.2 * noise).to(parameter.dtype))


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """What trains."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def files(directory: Path) -> list[str]:
    """The names of all files in a folder."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def tensors(path: Path) -> dict[str, list[Any]]:
    """The tensors of a file: shape, type and a digest of the bytes."""
    with safe_open(path / TENSORS, "pt") as file:
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return {key: [list(t.shape), str(t.dtype), digest(t)] for key, t in found.items()}


def digest(tensor: Tensor) -> str:
    """Equal for equal bits."""
    return hashlib.sha256(tensor.detach().contiguous().flatten().view(torch.uint8).numpy()).hexdigest()[:12]


def options(path: Path) -> dict[str, Any]:
    """An adapter's saved options; lists as what is in them."""
    read: dict[str, Any] = json.loads((path / CONFIG).read_text())
    return {key: sorted({*map(str, v)}) if isinstance(v, list) else v for key, v in read.items()}
