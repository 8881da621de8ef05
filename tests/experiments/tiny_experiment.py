"""An experiment over a tiny base that trains in well under a second a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.store.tiny import LETTERS
from tests.training.tiny_run import recipe_content, write_rows

from manytune.experiments.recipe import Experiment, experiment_from
from manytune.store.run_log import Report


class Reported:
    """A reporter that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps = 0

    def line(self, text: str) -> None:
        self.lines.append(text)

    def training(self, report: Report) -> None:
        self.steps += 1

    def answering(self, what: str, done: int, total: int) -> None:
        pass

    def trained(self) -> list[str]:
        return [line.removeprefix("training ") for line in self.lines if line.startswith("training ")]


def content(directory: Path, **compare: Any) -> dict[str, Any]:
    """A recipe with its `compare` section; the probes are a few letters, since the base has 64 positions."""
    found = recipe_content(directory, epochs=1, checkpoint_every=2, eval_every=3)
    found["data"] |= {"test": 0.25, "validation": 0.25}
    found["method"] = {"name": "lora", "r": 2, "target_modules": "all-linear"}
    found["output"] = str(directory / "experiment")
    found["compare"] = {
        "max_new_tokens": 4,
        "metrics": ["chrf", "perplexity"],
        "inference_cost": False,
        "shots": [],
        "systems": {
            "full": {"method": {"name": "full"}, "learning_rates": [0.003, 0.03]},
            "LoRA": {"learning_rates": [0.03]},
        },
        **compare,
    }
    text = directory / "texts.jsonl"
    text.write_text("".join(json.dumps({"text": LETTERS * 3}) + "\n" for _ in range(3)))
    found["forgetting"] = {
        "defaults": False,
        "max_new_tokens": 4,
        "probes": [
            {
                "name": "letters",
                "file": str(write_rows(directory / "other.jsonl", 5, seed=9)),
                "prompt": "{{ text }}",
                "completion": "{{ answer }}",
                "metric": "perplexity",
            }
        ],
    }
    return found


def experiment(directory: Path, **compare: Any) -> Experiment:
    return experiment_from(content(directory, **compare))
