"""The demo's two recipes: LoRA on every linear layer, and full fine-tuning for comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from manytune.demo.aclsum import COMPLETION, GROUP_BY, PROMPT, QUESTIONS
from manytune.training.recipe import Recipe, recipe_from

BASE = "embedded"
BASE_TITLE = "HuggingFaceTB/SmolLM2-135M-Instruct, weights dequantised from 4 bits (Q4_1)"
DATA = "data"
"""The directory of the rows, in the demo's output."""
MAX_NEW_TOKENS = 64  # the longest reference of ACLSum has 47
MAX_LENGTH = 1024  # leaves out the one training paper whose abstract is a whole paper

# LoRA wants about ten times the learning rate of full fine-tuning ("LoRA Without Regret", 2025).
_METHODS: dict[str, tuple[dict[str, object], float]] = {
    "lora": ({"name": "lora", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}, 1e-3),
    "full": ({"name": "full"}, 1e-4),
}


def make_recipe(method: Literal["lora", "full"], directory: Path, *, steps: int) -> Recipe:
    """The recipe of one of the demo's trainings, as `manytune train` would read it.

    Args:
        method: Which one.
        directory: The demo's output directory; the run directory is in it, under the method's name.
        steps: Optimizer steps. Each takes one paper with its three questions.
    """
    options, learning_rate = _METHODS[method]
    data = directory / DATA
    return recipe_from(
        {
            "base": BASE,
            "data": {
                "train": str(data / "train.jsonl"),
                "validation": str(data / "validation.jsonl"),
                "test": str(data / "test.jsonl"),
                "prompt": PROMPT,
                "completion": COMPLETION,
                "group_by": GROUP_BY,
                "max_length": MAX_LENGTH,
                "overflow": "drop",
            },
            "method": options,
            "training": {
                "max_steps": steps,
                "batch_size": len(QUESTIONS),
                "learning_rate": learning_rate,
                "batching": "shared-prefix",
                "group_prefixes": True,
                "eval_every": -(-steps // 2),
                "checkpoint_every": None,
            },
            "output": str(directory / method),
        },
        where=f"the demo's recipe for {method}",
    )
