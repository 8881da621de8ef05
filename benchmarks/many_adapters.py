"""Thousands of adapters in a store, made without training: what `switching.py` measures on."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file

from manytune.methods.lora.config import LoraConfig
from manytune.model.attach import get_peft_model
from manytune.store.base import Base
from manytune.store.digests import sha256_file
from manytune.store.manifest import MANIFEST_NAME, Manifest
from manytune.store.store import AdapterStore

TARGETS = {
    "q,v": ["q_proj", "v_proj"],
    "all-linear": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


def lora(targets: str, r: int = 8) -> LoraConfig:
    """The options of the adapters that are measured."""
    return LoraConfig(r=r, lora_alpha=2 * r, target_modules=list(TARGETS[targets]), task_type="CAUSAL_LM")


def write_adapters(
    folder: Path, base: Base, count: int, targets: str, *, r: int = 8, dtype: torch.dtype = torch.float32
) -> Iterator[Path]:
    """Adapters on disk, one after another, of random values; each has values that no other has.

    One directory is used again and again: copy what is in it before asking for the next.
    """
    model = get_peft_model(base.model, lora(targets, r))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    target = folder / "adapter"
    model.save_pretrained(target)
    tensors = {
        f"base_model.model.{name}": tensor.detach().to(dtype, copy=True)
        for name, tensor in model.tuner.state("default").items()
    }
    model.unload()
    first = next(iter(tensors))
    for number in range(count):
        tensors[first][0, :2] = torch.tensor([number % 100, number // 100], dtype=dtype) / 100
        save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
        _write_manifest(target, base)
        yield target


def fill(store: AdapterStore, base: Base, count: int, *, dtype: torch.dtype = torch.bfloat16) -> None:
    """Fill a store up to a number of r=8 q,v adapters, called a0, a1 and so on."""
    present = sum(1 for _ in (store.root / "names").glob("a*")) if store.root.exists() else 0
    if present >= count:
        return
    # Thousands of flushes to the disk take minutes, and these adapters can be made again.
    with tempfile.TemporaryDirectory() as folder, mock.patch("os.fsync"):
        for number, path in enumerate(write_adapters(Path(folder), base, count, "q,v", dtype=dtype)):
            if number >= present:
                store.add(path, name=f"a{number}")
                if number % 1000 == 0:
                    print(f"  {number:,} adapters in the store", flush=True)


def copies(folder: Path, base: Base, count: int, targets: str, *, r: int = 8) -> list[Path]:
    """Directories of a few adapters."""
    made = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, path in enumerate(write_adapters(Path(scratch), base, count, targets, r=r)):
            made.append(Path(shutil.copytree(path, folder / f"{targets}-{r}-{number}")))
    return made


def _write_manifest(target: Path, base: Base) -> None:
    names = ("adapter_config.json", "adapter_model.safetensors")
    manifest = Manifest(
        method="lora",
        base=base.name,
        fingerprint=base.fingerprint,
        template={"prompt": "{{ text }}", "completion": "{{ answer }}"},
        encoding="chat",
        files={name: sha256_file(target / name) for name in names},
        created="2030-01-01T00:00:00Z",
        manytune="benchmark",
    )
    (target / MANIFEST_NAME).write_text(manifest.to_json())
