"""A first look at the work: how much there is to compute for a paper, and how fast one training step is."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

import torch

from manytune.data.encoding.encoded import Encoded
from manytune.demo.plan import Workload
from manytune.model.attach import get_peft_model
from manytune.token_prefixes import common_prefix
from manytune.training.batches import builder, packed_attention
from manytune.training.recipe import Recipe
from manytune.training.speed.timing import forward_backward_seconds


def workload_of(model: Any, papers: Sequence[Sequence[Encoded]]) -> Workload:
    """Count the model's weights and the papers' tokens.

    Args:
        model: A transformers causal language model with nothing attached.
        papers: For each paper its questions with their answers; prompts of one paper begin alike.
    """
    head = model.get_output_embeddings()
    layers = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    shared = [common_prefix(*(row.prompt_ids for row in rows)) for rows in papers]
    return Workload(
        layer_weights=layers,
        head_weights=head.weight.numel(),
        document_tokens=mean(shared),
        question_tokens=mean(
            len(row.prompt_ids) - prefix for rows, prefix in zip(papers, shared, strict=True) for row in rows
        ),
        answer_tokens=mean(len(row.completion_ids) for rows in papers for row in rows),
        questions=len(papers[0]),
    )


def time_step(model: Any, paper: Sequence[Encoded], recipe: Recipe) -> float:
    """Seconds of one forward and backward pass over a paper, with the recipe's method attached.

    The model is left as it was; the optimizer's part is not in it.

    Args:
        model: The base.
        paper: A paper's questions with their answers.
        recipe: Says what to attach and how to lay out the batch.
    """
    build = builder(recipe.training.batching)
    attached = get_peft_model(model, recipe.method.peft_config())
    attached.train()
    trained = [parameter for parameter in attached.parameters() if parameter.requires_grad]
    try:
        with packed_attention(attached):
            forward_backward_seconds(attached, build(paper[:1], pad_id=0), trained)  # it also allocates
            return forward_backward_seconds(attached, build(paper, pad_id=0), trained)
    finally:
        attached.unload()
        model.eval()
