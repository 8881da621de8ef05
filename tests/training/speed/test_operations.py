"""The arithmetic of a training step, by closed form, and what a run says of it."""

from __future__ import annotations

import pytest
import torch
from tests.store.tiny import tiny_model
from tests.training.loop.test_trainer import settings
from tests.training.tiny_run import lora, sequences
from torch.utils.flop_counter import FlopCounterMode

from manytune.data.encode import Encoded
from manytune.kernels import products
from manytune.training.batches import BUILDERS, TokenCounts, builder
from manytune.training.loop.counters import Tally
from manytune.training.loop.train import train_model
from manytune.training.speed.flops import matrix_speed
from manytune.training.speed.operations import ModelSize

# 1 2 3 | 4 5 and 1 2 6 | 7: inputs 1234 and 126, as a trie 1 2 3 4 6
TWO = [Encoded((1, 2, 3), (4, 5), "x", 1), Encoded((1, 2, 6), (7,), "x", 2)]


@pytest.mark.parametrize(
    ("layout", "computed", "pairs", "logit_rows"),
    [
        ("padded", 8, (1 + 2 + 3 + 4) + (1 + 2 + 3), 3),
        ("padding-free", 7, (1 + 2 + 3 + 4) + (1 + 2 + 3), 3),
        ("shared-prefix", 5, (1 + 2 + 3 + 4) + 3, 3),
    ],
)
def test_a_batch_is_tallied_without_its_pad_tokens(
    layout: str, computed: int, pairs: int, logit_rows: int
) -> None:
    tally = Tally.of(builder(layout)(TWO, pad_id=0))
    assert (tally.counts.tokens_computed, tally.pairs, tally.logit_rows) == (computed, pairs, logit_rows)
    assert (tally + tally).pairs == 2 * pairs


def test_a_models_size_is_that_of_its_matrices() -> None:
    layers, head = 2 * (4 * 16 * 16 + 3 * 16 * 32), tiny_model().lm_head.weight.numel()
    adapters = 2 * (4 * 2 * (16 + 16) + 3 * 2 * (16 + 32))
    assert ModelSize.of(lora()) == ModelSize(layers + adapters, head, 2 * 16, adapters, 0)
    assert ModelSize.of(lora(name="full")) == ModelSize(layers, head, 2 * 16, layers, head)


def test_layers_below_everything_that_is_trained_have_no_backward_pass() -> None:
    model, layer = lora(), 4 * 16 * 16 + 3 * 16 * 32 + 4 * 2 * (16 + 16) + 3 * 2 * (16 + 32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1." in name and "lora_" in name)
    size, tally = ModelSize.of(model), Tally(TokenCounts(9, 14, 12, 2, 4), pairs=30, logit_rows=4)
    assert size is not None
    assert (size.lower_weights, size.lower_attention_width) == (layer, 16)
    assert size.forward(tally) == 2 * 2 * layer * 10 + 2 * size.head_weights * 4 + 4 * 32 * 30
    trained = size.trained_layer_weights
    assert size.backward(tally) == 2 * (layer + trained) * 10 + 2 * size.head_weights * 4 + 8 * 16 * 30
    # Whoever trains what comes before the layers sends a gradient through all of them.
    model.get_input_embeddings().weight.requires_grad_()
    through_all = ModelSize.of(model)
    assert through_all is not None and through_all.lower_weights == 0


def test_the_formula_by_hand() -> None:
    tally = Tally(TokenCounts(9, 14, 12, 2, 4), pairs=30, logit_rows=4)
    size = ModelSize(
        layer_weights=100,
        head_weights=50,
        attention_width=8,
        trained_layer_weights=10,
        trained_head_weights=0,
    )
    assert size.forward(tally) == 2 * 100 * 10 + 2 * 50 * 4 + 4 * 8 * 30
    assert size.backward(tally) == 2 * 110 * 10 + 2 * 50 * 4 + 8 * 8 * 30
    assert size.training(tally) == size.forward(tally) + size.backward(tally)


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
    size, tally = ModelSize.of(model), Tally.of(batch)
    assert size is not None
    assert counted == pytest.approx(size.training(tally) - 12 * size.attention_width * tally.pairs, rel=0.1)


@pytest.mark.parametrize("layout", BUILDERS)
def test_a_result_has_the_sum_of_its_batches(layout: str) -> None:
    rows = sequences(9)
    result = train_model(
        lora(), rows, [], settings(batching=layout, epochs=1.0, batch_size=9, warmup=0.0), pad_id=0
    )
    assert result.tally == Tally.of(builder(layout)(rows, pad_id=0))


def test_the_share_achieved_is_operations_over_time_and_speed() -> None:
    result = train_model(lora(), sequences(4), [], settings(max_steps=2), pad_id=0, measure_speed=True)
    assert result.operations is not None and result.matrix_speed is not None and result.achieved is not None
    assert result.achieved * result.step_seconds * result.matrix_speed == pytest.approx(result.operations)
    assert 0 < result.achieved < 1  # a tiny model spends its time elsewhere


def test_the_machine_is_not_measured_after_a_short_run_unasked() -> None:
    result = train_model(lora(), sequences(4), [], settings(max_steps=2), pad_id=0)
    assert result.matrix_speed is None
    assert result.achieved is None


@pytest.mark.skipif(not products._AVAILABLE, reason="this torch has no oneDNN")
def test_the_products_measured_are_made_as_a_step_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    multiply = products._onednn
    monkeypatch.setattr(products, "_onednn", lambda *given: made.append(0) or multiply(*given))
    matrix_speed(lora().float(), rows=100, seconds=0.01)
    assert made


def test_measuring_changes_no_weight_and_draws_no_random_number() -> None:
    model = lora()
    before = [parameter.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    assert matrix_speed(model, rows=100, seconds=0.01) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))
