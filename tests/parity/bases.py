"""The models of the matrix: one layer of width 16, from configurations, each built once a process."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from manytune.methods.tuners.quantized_layers import keep_differentiable

VOCABULARY = 24
_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
_ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 32, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 1, "num_heads": 2,
    "dropout_rate": 0.0, "decoder_start_token_id": 0,
}  # fmt: skip
_BART: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "max_position_embeddings": 32, "dropout": 0.0, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1,
    "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
_DISTILBERT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24, "dropout": 0.0,
    "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "max_position_embeddings": 32, "num_labels": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Base:
    """A kind of model and the task it has.

    Attributes:
        kind: Name of its class in transformers; its configuration's begins like it.
        targets: Linear layers of one block: two of attention, and the second of the feed-forward layers last.
        whole: A module that `modules_to_save` names.
        head: The output embeddings, where they can be trained in full.
        tied: Whether these are the input embeddings, too.
        prompt_sizes: What a soft prompt has to be given, where its size can't be inferred by both libraries.
        packed: In how many bits bitsandbytes keeps its linear layers; 0 if it doesn't.
    """

    name: str
    kind: str
    sizes: dict[str, Any] = field(hash=False)
    task: str
    targets: tuple[str, ...]
    whole: str
    head: str = ""
    tied: bool = False
    prompt_sizes: dict[str, int] = field(default_factory=dict, hash=False)
    packed: int = 0

    def build(self, dtype: torch.dtype = torch.float32) -> Any:
        """A model of its own; the same weights every time."""
        return copy.deepcopy(_built(self, dtype))

    def inputs(self) -> dict[str, Tensor]:
        """Two rows of ids, with padding in one, and what the task's loss takes."""
        ids = torch.randint(3, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(5))
        mask = torch.ones_like(ids)
        mask[1, 4:] = 0
        labels: dict[str, Tensor] = {
            "CAUSAL_LM": {"labels": ids.masked_fill(mask == 0, -100)},
            "SEQ_2_SEQ_LM": {"labels": ids[:, :4] - 1},
            "SEQ_CLS": {"labels": torch.tensor([0, 1])},
            "TOKEN_CLS": {"labels": (ids % 3).masked_fill(mask == 0, -100)},
            "QUESTION_ANS": {"start_positions": torch.tensor([0, 1]), "end_positions": torch.tensor([3, 2])},
            "FEATURE_EXTRACTION": {},
        }[self.task]
        return {"input_ids": ids, "attention_mask": mask, **labels}

    @property
    def generates(self) -> bool:
        return self.task in ("CAUSAL_LM", "SEQ_2_SEQ_LM")

    def __str__(self) -> str:
        return self.name


@cache
def _built(base: Base, dtype: torch.dtype) -> nn.Module:
    # Outside of the script's random numbers, which don't depend on whether a model was built before.
    with torch.random.fork_rng():
        return _drawn(base, dtype)


def _drawn(base: Base, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(
        hf, f"{base.kind.partition('For')[0].removesuffix('Model').removesuffix('LMHead')}Config"
    )
    model: nn.Module = getattr(hf, base.kind)(config(**base.sizes)).double().eval()
    generator = torch.Generator().manual_seed(11)
    # Initial weights of this size give outputs that hardly depend on anything.
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return _packed(model.float(), base.packed) if base.packed else model.to(dtype)


def _packed(model: Any, bits: int) -> nn.Module:
    options: dict[str, Any] = (
        {"load_in_8bit": True}
        if bits == 8
        else {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": torch.float32,
        }
    )
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        packing = hf.BitsAndBytesConfig(**options)
        packed: nn.Module = type(model).from_pretrained(
            directory, quantization_config=packing, dtype=torch.float32
        )
    # On CPUs with AVX512-BF16 bitsandbytes rounds what a 4-bit layer computes in evaluation mode to bfloat16, and no
    # gradient comes back afterwards. manytune's models don't let it; HF PEFT's would, and differ by the processor.
    keep_differentiable(packed)
    return packed.eval()


LLAMA = Base(
    "llama", "LlamaForCausalLM", _DECODER, "CAUSAL_LM", ("q_proj", "v_proj", "down_proj"), "norm", "lm_head"
)
TIED = Base(
    "llama_tied", "LlamaForCausalLM", _DECODER | {"tie_word_embeddings": True}, "CAUSAL_LM",
    ("q_proj", "v_proj", "down_proj"), "norm", "lm_head", tied=True,
)  # fmt: skip
GPT2 = Base(
    "gpt2", "GPT2LMHeadModel", _GPT2, "CAUSAL_LM", ("c_attn", "mlp.c_proj"), "ln_f", "lm_head", tied=True
)
T5 = Base(
    "t5", "T5ForConditionalGeneration", _T5, "SEQ_2_SEQ_LM", ("q", "v", "wo"), "final_layer_norm", "lm_head",
    tied=True,
)  # fmt: skip
BART = Base(
    "bart", "BartForConditionalGeneration", _BART, "SEQ_2_SEQ_LM", ("q_proj", "v_proj", "fc2"),
    "final_layer_norm", "lm_head", tied=True,
)  # fmt: skip
_BERT_LAYERS = ("query", "value", "attention.output.dense")
BERT = Base(
    "bert",
    "BertForSequenceClassification",
    _ENCODER | {"num_labels": 3},
    "SEQ_CLS",
    _BERT_LAYERS,
    "pooler.dense",
)
DISTILBERT = Base(
    "distilbert", "DistilBertForSequenceClassification", _DISTILBERT, "SEQ_CLS", ("q_lin", "v_lin", "lin2"),
    "output_layer_norm", prompt_sizes={"token_dim": 16, "num_attention_heads": 2, "num_layers": 1},
)  # fmt: skip
TOKENS = Base(
    "bert_tokens", "BertForTokenClassification", _ENCODER | {"num_labels": 3}, "TOKEN_CLS", _BERT_LAYERS,
    "attention.output.LayerNorm",
)  # fmt: skip
QUESTIONS = Base(
    "bert_questions", "BertForQuestionAnswering", _ENCODER, "QUESTION_ANS", _BERT_LAYERS,
    "attention.output.LayerNorm",
)  # fmt: skip
FEATURES = Base("bert_features", "BertModel", _ENCODER, "FEATURE_EXTRACTION", _BERT_LAYERS, "pooler.dense")

BASES = (LLAMA, TIED, GPT2, T5, BART, BERT, DISTILBERT, TOKENS, QUESTIONS, FEATURES)

#: In packed weights, where bitsandbytes is installed; of sizes that fill whole blocks of 64 weights.
_BLOCKS = _DECODER | {"hidden_size": 64, "intermediate_size": 64}
PACKED = tuple(
    Base(
        name, "LlamaForCausalLM", _BLOCKS, "CAUSAL_LM", ("q_proj", "v_proj", "down_proj"), "norm", packed=bits
    )
    for name, bits in (("llama_nf4", 4), ("llama_int8", 8))
    if importlib.util.find_spec("bitsandbytes") is not None
)
