"""IA3's sizes; see `IA3Config`."""

from __future__ import annotations

from typing import Literal

from manytune.errors import ConfigError
from manytune.methods.tuners.sizes import MethodSizes, ModelSizes, Trained, register_sizes

_KV_DOWN = (("k_proj", "v_proj"), ("down_proj",))
_QV_DOWN = (("q_proj", "v_proj"), ("down_proj",))
_FUSED = (("query_key_value",), ("dense_4h_to_h",))
_GPT2 = (("c_attn",), ("mlp.c_proj",))
_BERT = (("key", "value"), ("output.dense",))

#: Attention modules and feed-forward modules that are usual for an architecture, by `config.model_type`.
USUAL_MODULES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **dict.fromkeys(("llama", "mistral"), _KV_DOWN),
    **dict.fromkeys(("llama4", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"), _QV_DOWN),
    **dict.fromkeys(("gpt_neox", "falcon", "RefinedWeb", "RefinedWebModel"), _FUSED),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), _GPT2),
    **dict.fromkeys(("bert", "roberta"), _BERT),
    "deberta-v2": (("key_proj", "value_proj"), ("output.dense",)),
    "deberta": (("in_proj",), ("output.dense",)),
    "bloom": (("query_key_value",), ("mlp.dense_4h_to_h",)),
    "t5": (("k", "v"), ("wo",)),
    "mt5": (("k", "v", "wi_1"), ()),
    "opt": (("q_proj", "k_proj"), ("fc2",)),
    "bart": (("q_proj", "v_proj"), ("fc2",)),
    "phi": (("q_proj", "v_proj"), ("fc2",)),
    "gptj": (("q_proj", "v_proj"), ("fc_out",)),
    "gpt_neo": (("q_proj", "v_proj"), ("c_proj",)),
    "mixtral": (("k_proj", "v_proj"), ("w2",)),
}


class IA3Sizes(MethodSizes):
    """A factor for each output of the scaled attention modules, and for each input of the feed-forward's way out."""

    name: Literal["ia3"] = "ia3"
    """The method."""

    def trained(self, model: ModelSizes) -> Trained:
        """See `MethodSizes.trained`."""
        if model.model_type not in USUAL_MODULES:
            raise ConfigError(f"IA3 has no usual modules for {model.model_type}.")
        scaled, ways_out = (model.named(names) for names in USUAL_MODULES[model.model_type])
        numbers = sum(matrix.outputs for matrix in scaled) + sum(matrix.inputs for matrix in ways_out)
        parameters = model.layers * numbers
        return Trained(
            label="IA3",
            parameters=parameters,
            kept=parameters,
            other_numbers=parameters,
            saved_numbers=numbers,
        )


register_sizes(IA3Sizes)
