"""What a training says about a mixture's experts: how many of their parameters it adapts."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.methods.tiny_models import LLAMA
from tests.methods.tiny_moe import QWEN3
from tests.store.tiny import save_tiny_mixture
from tests.training.tiny_run import recipe_content
from typer.testing import CliRunner

from manytune import LoraConfig, PeftWarning, get_peft_model
from manytune.cli.main import build_app
from manytune.model.accounting import ExpertCounts, count_experts

#: Two layers of four experts, each with gate and up (16 to 24) and down (24 to 16).
ALL = 2 * 4 * 3 * 16 * 24


def test_adapted_experts_are_counted_in_closed_form() -> None:
    assert count_experts(LLAMA.build()) is None
    options: dict[str, Any] = {"target_modules": ["q_proj"]}
    assert count_experts(get_peft_model(QWEN3.build(), LoraConfig(**options))) == ExpertCounts(0, ALL)
    options["target_parameters"] = ["layers.1.mlp.experts.down_proj"]
    assert count_experts(get_peft_model(QWEN3.build(), LoraConfig(**options))) == ExpertCounts(
        4 * 16 * 24, ALL
    )
    trained = QWEN3.build().requires_grad_(True)
    assert count_experts(trained) == ExpertCounts(ALL, ALL)


@pytest.mark.parametrize(
    ("targets", "adapted", "words"),
    [("all-linear", ALL, "100% of"), (["q_proj"], 0, "so they stay frozen")],
    ids=["all-linear", "attention"],
)
def test_a_run_and_a_dry_run_say_how_many_parameters_of_experts_are_adapted(
    targets: Any, adapted: int, words: str, tmp_path: Path
) -> None:
    content = recipe_content(tmp_path, max_steps=2)
    content["base"] = str(save_tiny_mixture(tmp_path / "mixture"))
    content["method"] = {"name": "lora", "r": 2, "target_modules": targets}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    for option in (["--dry-run"], []):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PeftWarning)  # the router stays frozen
            result = CliRunner().invoke(build_app(), ["train", str(tmp_path / "recipe.yaml"), *option])
        assert result.exit_code == 0, result.stderr
        line = next(line for line in result.stdout.splitlines() if line.startswith("experts adapted"))
        assert f"{adapted:,} (" in line and words in " ".join(result.stdout.split())
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["experts"] == {"adapted": adapted, "all": ALL}
