"""What a merge and an unmerge leave of the base's weights, compared with HF PEFT.

    python benchmarks/merge_exactness.py [--cycles 100]

A LoRA adapter (r=8, q,v, random factors of the size that training gives them) is merged into SmolLM2-135M-Instruct and
taken out again. Shown are the share of targeted weights that differ from the base afterwards: after one cycle for
either library, and after many for manytune.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import peft
import torch
from torch import Tensor

import manytune
from manytune.store.base import Base, load_base

LIBRARIES: dict[str, Any] = {"manytune": manytune, "peft": peft}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=100, help="cycles of manytune's second figure")
    options = parser.parse_args()
    print("targeted weights that differ from the base's afterwards")
    print(f"{'dtype':<10} {'peft, 1 cycle':>14} {'manytune, 1':>12} {f'manytune, {options.cycles}':>14}")
    for dtype in (torch.float32, torch.bfloat16):
        base = load_base("embedded", dtype=dtype)
        theirs = _changed(base, "peft", 1)
        once, often = (_changed(base, "manytune", cycles) for cycles in (1, options.cycles))
        print(f"{str(dtype).removeprefix('torch.'):<10} {theirs:>14.2%} {once:>12.2%} {often:>14.2%}")


def _changed(base: Base, name: str, cycles: int) -> float:
    model = copy.deepcopy(base.model)
    before = [weight.clone() for weight in _targeted(model)]
    library = LIBRARIES[name]
    config = library.LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    attached = library.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in attached.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    for _ in range(cycles):
        attached.merge_adapter()
        attached.unmerge_adapter()
    after = _targeted(attached.unload())
    changed = sum(int((old != new).sum()) for old, new in zip(before, after, strict=True))
    return changed / sum(weight.numel() for weight in before)


def _targeted(model: Any) -> list[Tensor]:
    return [m.weight for name, m in model.named_modules() if name.endswith((".q_proj", ".v_proj"))]


if __name__ == "__main__":
    main()
