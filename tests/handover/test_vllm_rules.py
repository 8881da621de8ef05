"""What vLLM can serve, adapter by adapter."""

from __future__ import annotations

import pytest

from manytune.errors import ConfigError
from manytune.handover.vllm_release import reads_patterns
from manytune.handover.vllm_rules import RANKS, check_adapter, rank_for
from manytune.methods.registry import peft_config_from

NAMES = ["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]


def check(method="lora", names=NAMES, patterns=True, tied=False, **options):
    return check_adapter(peft_config_from(method, **options), names, patterns=patterns, tied=tied)


@pytest.mark.parametrize(
    ("options", "rank"),
    [
        ({"r": 4}, 4),
        ({"r": 512}, 512),
        ({"r": 4, "use_rslora": True}, 4),
        ({"r": 4, "init_lora_weights": "gaussian"}, 4),
        ({"r": 4, "rank_pattern": {"q_proj": 24}, "alpha_pattern": {"q_proj": 2}}, 24),
        ({"r": 4, "names": ["base_model.model.lm_head.lora_B.weight"]}, 4),
    ],
)
def test_plain_lora_can_be_served_with_room_for_its_largest_rank(options, rank):
    assert check(**options) == rank


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"method": "ia3"}, "of type IA3"),
        ({"method": "vera"}, "of type VERA"),
        ({"method": "adalora", "total_step": 10}, "of type ADALORA"),
        ({"method": "prompt-tuning", "num_virtual_tokens": 3}, "of type PROMPT_TUNING"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias='all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "trains lm_head in full"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "starts from the base's weights"),
        ({"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
        ({"names": ["base_model.model.model.embed_tokens.lora_embedding_A"]}, "which isn't a linear layer's"),
        ({"names": ["base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_A.weight"]}, "an expert's"),
        ({"names": ["base_model.model.lm_head.lora_A.weight"], "tied": True}, "its embeddings' table"),
        ({"rank_pattern": {"q_proj": 3}, "patterns": False}, "one rank and one alpha"),
        ({"alpha_pattern": {"q_proj": 3}, "patterns": False}, "one rank and one alpha"),
        ({"r": 513}, "ranks up to 512"),
        ({"task_type": "SEQ_CLS"}, "its task is SEQ_CLS"),
        ({"task_type": "TOKEN_CLS"}, "its task is TOKEN_CLS"),
        ({"task_type": "QUESTION_ANS"}, "its task is QUESTION_ANS"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_everything_else_is_refused_by_name(options, reason):
    with pytest.raises(ConfigError, match=reason):
        check(**options)


def test_the_rank_that_vllm_is_started_for_is_the_least_that_it_takes():
    assert [rank_for(rank) for rank in (1, 2, 8, 9, 300, 512)] == [1, 8, 8, 16, 320, 512]
    assert list(RANKS) == sorted(RANKS)


@pytest.mark.parametrize(
    ("version", "reads"),
    [("0.31.0", False), ("0.32.0", True), ("0.32.0+cpu", True), ("1.0", True), ("dev", False), (None, False)],
)
def test_patterns_are_for_releases_that_read_them(version, reads):
    assert reads_patterns(version) is reads
