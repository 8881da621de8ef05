"""What can't be sharded is refused with a sentence, before any process waits for another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.store.tiny import tiny_model
from tests.training.tiny_run import lora, recipe_content, settings
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration

from manytune.errors import RunError
from manytune.methods.registry import peft_config_from
from manytune.model.attach import get_peft_model
from manytune.training.distributed.processes import ALONE, Processes
from manytune.training.distributed.sharding import (
    check_base_to_shard,
    check_recipe_to_shard,
    shard,
    sharding_here_alone,
    shards,
)
from manytune.training.recipe import recipe_from
from manytune.training.run import run

TWO = Processes(count=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"compile": True}}, r"compiled layer.*Set training\.compile to false"),
        ({"training": {"cache_frozen": True}}, r"Set training\.cache_frozen to false"),
        ({"training": {"lora_fa": True}}, r"Set training\.lora_fa to false"),
        ({"training": {"validation": {"scores": ["rouge1"]}}}, r"Leave training\.validation out"),
        ({"training": {"optimizer": "adafactor"}}, r"one of adamw, adamw_torch_fused, adamw_torch, sgd"),
        ({"weights": "nf4"}, r"packed base can't be cut\. Leave weights out"),
        ({"method": {"name": "adalora", "target_r": 2}}, r"method adalora .*Choose another method"),
    ],
)
def test_a_recipe_that_cannot_be_sharded_is_refused_before_anything_is_read(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    content = {**recipe_content(tmp_path), **changes}
    recipe = recipe_from({**content, "training": {"sharding": "full", **changes.get("training", {})}})
    with pytest.raises(RunError, match=rf"can't be sharded .*{message}.*sharding to none \(DDP\)"):
        run(recipe, processes=TWO)
    assert not Path(recipe.output).exists()


def test_a_base_that_other_runs_share_is_not_sharded(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Let the run load it"):
        check_recipe_to_shard(recipe_from(recipe_content(tmp_path)), shares_base=True)


def with_a_scalar() -> nn.Module:
    model = tiny_model()
    model.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    return model


def with_dropped_layers() -> nn.Module:
    sizes = {"d_model": 8, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "vocab_size": 8, "pad_token_id": 1}
    heads = {
        "encoder_attention_heads": 1,
        "decoder_attention_heads": 1,
        "encoder_layers": 1,
        "decoder_layers": 1,
    }
    return BartForConditionalGeneration(BartConfig(**sizes, **heads, decoder_layerdrop=0.1))


def without_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_a_scalar, "scale is a single number"),
        (with_dropped_layers, r"leaves out layers by chance.*\(decoder_layerdrop\)"),
        (without_layers, "the model names no layers"),
    ],
)
def test_a_base_that_cannot_be_sharded_is_refused(make: Any, message: str) -> None:
    check_base_to_shard(tiny_model())
    with pytest.raises(RunError, match=message):
        check_base_to_shard(make())


def test_what_a_method_made_of_a_model_may_not_be_shardable() -> None:
    model = tiny_model()
    first, second = model.model.layers
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    with pytest.raises(RunError, match="several layers of the model share a weight"):
        shard(model, settings(), TWO)
    model = lora()
    next(p for p in model.parameters() if p.requires_grad).data = torch.zeros(2, 16, dtype=torch.bfloat16)
    with pytest.raises(RunError, match=r"\(bfloat16 and float32\).*training\.activations"):
        shard(model, settings(), TWO)
    config = peft_config_from("adalora", task_type="CAUSAL_LM", target_r=1, init_r=2, total_step=9)
    with pytest.raises(RunError, match="looks at whole weights between steps"):
        shard(get_peft_model(tiny_model(), config), settings(), TWO)


def test_one_process_does_not_shard_and_accelerates_configuration_is_enough_for_several() -> None:
    full = settings(sharding="full")
    assert not shards(full, ALONE) and shards(full, TWO) and not shards(settings(), TWO)
    assert shards(settings(), Processes(count=2, shards=True))


def test_transformers_and_accelerate_do_not_shard_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with sharding_here_alone():
        assert "ACCELERATE_USE_FSDP" not in os.environ
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
