"""Which projections are adapted by default, by `config.model_type`."""

from __future__ import annotations

ALL_LINEAR = "all-linear"

_Q_V = ("q_proj", "v_proj")
_QUERY_VALUE = ("query", "value")
_FUSED_QKV = ("query_key_value",)

#: The self-attention projections that the LoRA paper adapts (query and value, or the fused one).
ATTENTION_PROJECTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("t5", "mt5", "umt5"), ("q", "v")),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ("c_attn",)),
    **dict.fromkeys(("bloom", "gpt_neox", "falcon", "chatglm", "RefinedWeb", "RefinedWebModel"), _FUSED_QKV),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "layoutlm", "vit"), _QUERY_VALUE),
    **dict.fromkeys(("bart", "opt", "gptj", "gpt_neo", "llama", "llama4", "mistral", "mixtral"), _Q_V),
    **dict.fromkeys(
        ("gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "stablelm", "smollm3", "olmo2"), _Q_V
    ),
    **dict.fromkeys(("granite", "qwen3_moe"), _Q_V),
    "deberta-v2": ("query_proj", "value_proj"),
    "deberta": ("in_proj",),
    "mpt": ("Wqkv",),
    "codegen": ("qkv_proj",),
    "phi3": ("qkv_proj",),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
    "distilbert": ("q_lin", "v_lin"),
}
