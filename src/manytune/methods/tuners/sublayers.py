"""Where a transformer's sublayers begin and end: one declaration for each architecture.

A transformer layer adds two sublayers to its hidden states, attention and a feed-forward network (MLP). What a method
has to know is which linear layers bring their results back to the hidden size, and which one the MLP begins with.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sublayers:
    """Regular expressions for whole module paths.

    Attributes:
        attention: The output projections of attention, of the hidden size.
        mlp: The output projections of the MLP, of the hidden size.
        mlp_input: A layer that reads what the MLP reads.
    """

    attention: str
    mlp: str
    mlp_input: str


_GATED = Sublayers(
    attention=r".*self_attn\.o_proj", mlp=r".*mlp\.down_proj", mlp_input=r".*mlp\.(gate_proj|gate_up_proj)"
)
_BERT = Sublayers(
    attention=r".*attention\.output\.dense",
    mlp=r".*layer\.\d+\.output\.dense",
    mlp_input=r".*intermediate\.dense",
)
_T5 = Sublayers(
    attention=r".*(SelfAttention|EncDecAttention)\.o",
    mlp=r".*DenseReluDense\.wo",
    mlp_input=r".*DenseReluDense\.(wi|wi_0)",
)
_BART = Sublayers(attention=r".*attn\.out_proj", mlp=r".*\.fc2", mlp_input=r".*\.fc1")

#: By `config.model_type`.
SUBLAYERS: dict[str, Sublayers] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "olmo2", "phi3"),
        _GATED,
    ),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), _BERT),
    **dict.fromkeys(("t5", "mt5", "umt5"), _T5),
    **dict.fromkeys(("opt", "bart", "mbart"), _BART),
    "gpt2": Sublayers(r".*attn\.c_proj", r".*mlp\.c_proj", r".*mlp\.c_fc"),
    "gpt_neox": Sublayers(r".*attention\.dense", r".*mlp\.dense_4h_to_h", r".*mlp\.dense_h_to_4h"),
}
