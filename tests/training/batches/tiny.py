"""Tiny models of every kind that packed batches support, and batches for them."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 7
MAX_INPUTS = 16
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_INPUTS,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Sequence:
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    source: str = "rows.jsonl"
    row: int = 1
    given: tuple[tuple[int, int], ...] = ()


def llama():
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def qwen3():
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8))


def mistral():
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=3))


def gemma2():
    config = Gemma2Config(
        **SHAPE,
        head_dim=4,
        query_pre_attn_scalar=4,
        sliding_window=3,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=4.0,
    )
    return Gemma2ForCausalLM(config)


def gpt2():
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=MAX_INPUTS,
        n_embd=16,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config)


MODELS = {"llama": llama, "qwen3": qwen3, "mistral": mistral, "gemma2": gemma2, "gpt2": gpt2}


class ExactRMSNorm(torch.nn.Module):
    """A model's RMSNorm without its cast to float32, so that float64 means float64 in the backward pass
    too."""

    def __init__(self, norm):
        super().__init__()
        self.weight = norm.weight
        self.offset = 1.0 if "Gemma" in type(norm).__name__ else 0.0
        self.epsilon = getattr(norm, "variance_epsilon", None) or norm.eps

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon) * (self.offset + self.weight)


def model(name, dtype=torch.float64, *, exact_norms=True):
    """A model of that kind with fixed random weights, in training mode."""
    torch.manual_seed(0)
    built = MODELS[name]().to(dtype).train()
    if exact_norms:
        for path, module in list(built.named_modules()):
            if type(module).__name__.endswith("RMSNorm"):
                built.set_submodule(path, ExactRMSNorm(module))
    return built


# Four token ids and short sequences: most batches share prefixes, at several depths.
_tokens = st.integers(0, 3)


@st.composite
def sequences(draw, max_size=6):
    """A sequence of at most `MAX_INPUTS` inputs; single tokens and the greatest length are common."""
    prompt = draw(st.lists(_tokens, min_size=1, max_size=8))
    longest = MAX_INPUTS + 1 - len(prompt)
    completion = draw(st.lists(_tokens, min_size=1, max_size=longest))
    return Sequence(tuple(prompt), tuple(completion))


@st.composite
def batches(draw):
    """Sequences, with some that repeat, begin, continue or re-label others of the batch."""
    batch = draw(st.lists(sequences(), min_size=1, max_size=5))
    for kind in draw(st.lists(st.sampled_from(("duplicate", "prefix", "resplit", "reference")), max_size=4)):
        model_of = draw(st.sampled_from(batch))
        tokens = model_of.prompt_ids + model_of.completion_ids
        if kind == "duplicate":
            batch.append(model_of)
        elif kind == "prefix":
            length = draw(st.integers(2, len(tokens)))
            batch.append(Sequence(tokens[: length - 1], tokens[length - 1 : length]))
        elif kind == "resplit":
            split = draw(st.integers(1, len(tokens) - 1))
            batch.append(Sequence(tokens[:split], tokens[split:]))
        else:
            size = MAX_INPUTS + 1 - len(model_of.prompt_ids)
            other = draw(st.lists(_tokens, min_size=1, max_size=size))
            batch.append(Sequence(model_of.prompt_ids, tuple(other)))
    return draw(st.permutations(batch))
