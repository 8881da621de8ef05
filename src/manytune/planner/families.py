"""What a layer of each family of decoders consists of, by its config's `model_type`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Biased = Literal["never", "always", "attention_bias", "enable_bias"]
"""Whether linear layers have biases: never, always, or as a key of the config says."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a family differs from Llama, whose layer has q, k, v and o projections, a gated MLP and two RMS norms.

    Attributes:
        qkv_bias: Biases of q, k and v.
        out_bias: Biases of attention's way out.
        mlp_bias: Biases of the MLP.
        gated: Whether the MLP multiplies two projections.
        fused: Whether q, k, v (and gate and up) are one projection.
        names: Names of the projections: q, k, v, o, gate, up, down, or with `fused` qkv, o, up, down.
        norms: Norms of a layer.
        layer_norm: Whether norms have biases.
        head_norms: Norms of q and k over each head, over all heads, or none.
        positions: Whether there is a table of positions, and rows that it has beyond the largest position.
        tied: Whether the head is the embedding where the config doesn't say.
        head_dim: The size of a head where the config doesn't say; None for the hidden size over the heads.
        bias_key: Default of the key that `qkv_bias` or `out_bias` names.
        as_many_key_heads: Whether keys have as many heads as queries where the config doesn't say.
        experts_keys: Keys of the number of experts, of which configs have one; none for a dense model.
        expert_size_key: The key of an expert's inner size.
        renamed: The config's names for the usual keys.
    """

    qkv_bias: Biased = "never"
    out_bias: Biased = "never"
    mlp_bias: bool | None = False
    gated: bool = True
    fused: bool = False
    names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    norms: int = 2
    layer_norm: bool = False
    head_norms: Literal["head", "all", "none"] = "none"
    positions: int | None = None
    tied: bool = False
    head_dim: int | None = None
    bias_key: bool = False
    as_many_key_heads: bool = True
    experts_keys: tuple[str, ...] = ()
    expert_size_key: str = "intermediate_size"
    renamed: tuple[tuple[str, str], ...] = ()


_LLAMA = Family(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias=None)
_GEMMA = {"qkv_bias": "attention_bias", "out_bias": "attention_bias", "tied": True, "head_dim": 256}

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "granite": Family(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias=None),
    "smollm3": Family(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        mlp_bias=None,
        tied=True,
        as_many_key_heads=False,
    ),
    "mistral": Family(as_many_key_heads=False),
    "qwen2": Family(qkv_bias="always"),
    "qwen3": Family(qkv_bias="attention_bias", out_bias="attention_bias", head_norms="head", head_dim=128),
    "olmo2": Family(qkv_bias="attention_bias", out_bias="attention_bias", head_norms="all"),
    "gemma": Family(**_GEMMA),  # type: ignore[arg-type]
    "gemma2": Family(**_GEMMA, norms=4, as_many_key_heads=False),  # type: ignore[arg-type]
    "gemma3_text": Family(**_GEMMA, norms=4, head_norms="head", as_many_key_heads=False),  # type: ignore[arg-type]
    "phi3": Family(
        fused=True,
        names=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    ),
    "gpt2": Family(
        fused=True,
        gated=False,
        names=("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"),
        qkv_bias="always",
        out_bias="always",
        mlp_bias=True,
        layer_norm=True,
        positions=0,
        tied=True,
        renamed=(
            ("hidden_size", "n_embd"),
            ("num_hidden_layers", "n_layer"),
            ("num_attention_heads", "n_head"),
            ("intermediate_size", "n_inner"),
            ("max_position_embeddings", "n_positions"),
        ),
    ),
    "gpt_neox": Family(
        fused=True,
        gated=False,
        names=("query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h"),
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        bias_key=True,
        mlp_bias=True,
        layer_norm=True,
    ),
    "opt": Family(
        gated=False,
        names=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        qkv_bias="enable_bias",
        out_bias="enable_bias",
        bias_key=True,
        mlp_bias=True,
        layer_norm=True,
        positions=2,
        tied=True,
        renamed=(("intermediate_size", "ffn_dim"),),
    ),
    "mixtral": Family(as_many_key_heads=False, experts_keys=("num_local_experts",)),
    "qwen3_moe": Family(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        head_norms="head",
        as_many_key_heads=False,
        experts_keys=("num_experts", "num_local_experts"),
        expert_size_key="moe_intermediate_size",
    ),
}

#: What configs hold that changes no size, or that says again what is read elsewhere.
HARMLESS = frozenset(
    [
        *(
            "_name_or_path",
            "architectures",
            "auto_map",
            "transformers_version",
            "torch_dtype",
            "dtype",
            "use_cache",
        ),
        *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id"),
        *(
            "rms_norm_eps",
            "layer_norm_eps",
            "layer_norm_epsilon",
            "initializer_range",
            "pretraining_tp",
            "is_decoder",
            "is_encoder_decoder",
        ),
        *(
            "hidden_act",
            "hidden_activation",
            "activation_function",
            "rope_theta",
            "rope_scaling",
            "rope_parameters",
        ),
        *(
            "rope_local_base_freq",
            "attention_dropout",
            "hidden_dropout",
            "dropout",
            "resid_pdrop",
            "embd_pdrop",
        ),
        *(
            "attn_pdrop",
            "resid_dropout",
            "max_position_embeddings",
            "model_max_length",
            "task_specific_params",
        ),
        *(
            "partial_rotary_factor",
            "rotary_pct",
            "rotary_emb_base",
            "rope_interleaved",
            "use_parallel_residual",
        ),
        *(
            "query_pre_attn_scalar",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "cache_implementation",
        ),
        *(
            "attention_multiplier",
            "embedding_multiplier",
            "residual_multiplier",
            "logits_scaling",
            "is_llama_config",
        ),
        *(
            "scale_attn_weights",
            "scale_attn_by_inverse_layer_idx",
            "reorder_and_upcast_attn",
            "n_ctx",
            "layerdrop",
        ),
        *(
            "summary_type",
            "summary_use_proj",
            "summary_activation",
            "summary_first_dropout",
            "do_layer_norm_before",
        ),
        *(
            "summary_proj_to_labels",
            "original_max_position_embeddings",
            "embd_layer_norm",
            "classifier_dropout",
        ),
        *(
            "router_aux_loss_coef",
            "router_jitter_noise",
            "output_router_logits",
            "norm_topk_prob",
            "init_std",
        ),
        *(
            "no_rope_layers",
            "no_rope_layer_interval",
            "max_window_layers",
            "use_sliding_window",
            "sliding_window",
        ),
        *(
            "sliding_window_pattern",
            "layer_types",
            "attn_implementation",
            "chunk_size_feed_forward",
            "id2label",
        ),
        *(
            "label2id",
            "problem_type",
            "return_dict",
            "output_attentions",
            "output_hidden_states",
            "vocab_size",
        ),
        *(
            "_remove_final_layer_norm",
            "layer_norm_elementwise_affine",
            "prefix",
            "resid_mlp_pdrop",
            "gradient_checkpointing",
        ),
        *(
            "use_bidirectional_attention",
            "_sliding_window_pattern",
            "transformers.js_config",
            "add_cross_attention",
        ),
    ]
)
