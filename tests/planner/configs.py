"""Small configs of every family that planning knows, as transformers writes them."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

_USUAL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 0,
}
_WITHOUT_KEY_HEADS = {key: value for key, value in _USUAL.items() if key != "num_key_value_heads"}
OWN: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16},
    "gpt2": {
        "vocab_size": 96,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_inner": 48,
        "n_positions": 64,
        "eos_token_id": 0,
        "bos_token_id": None,
    },
    "gpt_neox": _WITHOUT_KEY_HEADS,
    "opt": {**_WITHOUT_KEY_HEADS, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 16},
}


def config_of(model_type: str, **changes: Any) -> PretrainedConfig:
    """A small config of a family."""
    own = OWN.get(model_type, {})
    usual = {} if model_type in ("gpt2", "gpt_neox", "opt") else _USUAL
    return AutoConfig.for_model(model_type, **{**usual, **own, **changes})


def llama(**changes: Any) -> dict[str, Any]:
    """A config as a plan has it: 4 layers of hidden size 64, 4 heads of which 2 are keys', inner size 128."""
    return {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 1000,
        "tie_word_embeddings": False,
        **changes,
    }
