"""Required FLOPs of a training step by closed form, and the MFU that a run reports."""

from __future__ import annotations

import pytest
import torch
from tests.store.tiny import tiny_model
from tests.training.tiny_run import as_rows, lora, sequences, settings
from torch.utils.flop_counter import FlopCounterMode

from manytune.training.batches import TokenCounts, builder
from manytune.training.loop.counters import Counters
from manytune.training.loop.train import train_model
from manytune.training.speed.required_flops import ModelSize


def test_a_models_size_is_that_of_its_matrices() -> None:
    layers, head = 2 * (4 * 16 * 16 + 3 * 16 * 32), tiny_model().lm_head.weight.numel()
    adapters = 2 * (4 * 2 * (16 + 16) + 3 * 2 * (16 + 32))
    assert ModelSize.of(lora()) == ModelSize(layers + adapters, head, 2 * 16, adapters, 0)
    assert ModelSize.of(lora(name="full")) == ModelSize(layers, head, 2 * 16, layers, head)


def test_layers_below_everything_that_is_trained_have_no_backward_pass() -> None:
    model, layer = lora(), 4 * 16 * 16 + 3 * 16 * 32 + 4 * 2 * (16 + 16) + 3 * 2 * (16 + 32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1." in name and "lora_" in name)
    size, counters = ModelSize.of(model), Counters(TokenCounts(9, 14, 12, 2, 4), pairs=30, logit_rows=4)
    assert size is not None
    assert (size.lower_weights, size.lower_attention_width) == (layer, 16)
    assert size.forward_flops(counters) == 2 * 2 * layer * 10 + 2 * size.head_weights * 4 + 4 * 32 * 30
    trained = size.trained_layer_weights
    assert (
        size.backward_flops(counters) == 2 * (layer + trained) * 10 + 2 * size.head_weights * 4 + 8 * 16 * 30
    )
    # Whoever trains what comes before the layers sends a gradient through all of them.
    model.get_input_embeddings().weight.requires_grad_()
    through_all = ModelSize.of(model)
    assert through_all is not None and through_all.lower_weights == 0


def test_the_formula_by_hand() -> None:
    counters = Counters(TokenCounts(9, 14, 12, 2, 4), pairs=30, logit_rows=4)
    size = ModelSize(
        layer_weights=100,
        head_weights=50,
        attention_width=8,
        trained_layer_weights=10,
        trained_head_weights=0,
    )
    assert size.forward_flops(counters) == 2 * 100 * 10 + 2 * 50 * 4 + 4 * 8 * 30
    assert size.backward_flops(counters) == 2 * 110 * 10 + 2 * 50 * 4 + 8 * 8 * 30
    assert size.training_flops(counters) == size.forward_flops(counters) + size.backward_flops(counters)


def test_the_formula_agrees_with_the_products_that_torch_counts() -> None:
    """Torch counts attention over whole squares and not below the diagonal, so attention is left out of both."""
    model, (row,) = lora(name="full"), sequences(1)
    batch = builder("padded")([row], pad_id=0)
    model.train()
    with FlopCounterMode(display=False) as counter:
        batch.loss_sum(model(**batch.model_inputs(model)).logits).backward()
    products = counter.get_flop_counts()["Global"]
    counted = sum(
        flops for kind, flops in products.items() if kind in (torch.ops.aten.mm, torch.ops.aten.addmm)
    )
    size, counters = ModelSize.of(model), Counters.of(batch)
    assert size is not None
    assert counted == pytest.approx(
        size.training_flops(counters) - 12 * size.attention_width * counters.pairs, rel=0.1
    )


def test_mfu_is_required_flops_over_time_and_measured_flops() -> None:
    result = train_model(lora(), as_rows(sequences(4)), settings(max_steps=2), measure_flops=True)
    assert (
        result.required_flops is not None
        and result.matmul_flops_per_second is not None
        and result.mfu is not None
    )
    assert result.mfu * result.step_seconds * result.matmul_flops_per_second == pytest.approx(
        result.required_flops
    )
    assert 0 < result.mfu < 1  # a tiny model spends its time elsewhere
