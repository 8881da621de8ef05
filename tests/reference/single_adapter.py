"""The slow twin of the engine: one adapter attached, one request, transformers' own greedy generation."""

from __future__ import annotations

import torch
from transformers import GenerationConfig


def answer(model, prompt, *, max_new_tokens, end_id=None):
    """Tokens with the end token, and the log probabilities of the whole vocabulary at each of them."""
    inputs = torch.tensor([prompt])
    with torch.no_grad():
        result = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=end_id,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            ),
        )
    count = len(result.logits)
    tokens = result.sequences[0, -count:].tolist()
    return tokens, torch.cat(result.logits).log_softmax(1)
