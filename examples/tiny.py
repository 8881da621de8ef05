"""What the examples share: models of a few thousand weights, made from configurations, and a task that they can learn.

The task is to repeat the prompt's last token. Replace the model by `AutoModelForCausalLM.from_pretrained(...)` and the
rows by your own; nothing else changes.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

VOCABULARY = 32


def decoder() -> LlamaForCausalLM:
    """A decoder-only language model."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            pad_token_id=0,
            initializer_range=0.3,  # random weights this large leave an adapter something to work with
        )
    )


def encoder_decoder() -> T5ForConditionalGeneration:
    """An encoder-decoder."""
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_ff=64,
            d_kv=8,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
        )
    )


def rows(count: int = 64, *, prompt_in_labels: bool = True) -> list[dict[str, list[int]]]:
    """Token ids and labels; -100 marks positions without loss."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for prompt in torch.randint(3, 8, (count, 6), generator=generator).tolist():
        if prompt_in_labels:
            ids = [*prompt, prompt[-1]]
            found.append({"input_ids": ids, "labels": [*[-100] * len(prompt), prompt[-1]]})
        else:
            found.append({"input_ids": prompt, "labels": [prompt[-1], 1]})
    return found
