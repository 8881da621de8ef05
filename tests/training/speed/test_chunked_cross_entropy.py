"""Chunked cross-entropy against the loss of all logits at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.store.tiny import tiny_model
from tests.training.tiny_run import sequences
from torch import Tensor, nn
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from manytune.layer_forwards import replaced_forwards
from manytune.methods.lora.config import LoraConfig
from manytune.model.attach import get_peft_model
from manytune.training.batches import packed_attention, padded, seq2seq, shared_prefix
from manytune.training.speed.chunked_cross_entropy import _HEAD_IS_LAST, loss_sum

HEADS: dict[str, dict[str, Any]] = {
    "frozen": {"target_modules": ["q_proj"]},
    "with an adapter": {"target_modules": ["q_proj", "lm_head"]},
    "trained in full": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "alone": {"target_modules": ["lm_head"]},
    "rows of a tied one": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 7, 0]},
}


def attached(options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model().double(), LoraConfig(r=2, task_type="CAUSAL_LM", **options)).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def encoder_decoder(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "t5":
        config = T5Config(
            vocab_size=32, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, dropout_rate=0.0
        )
        config.decoder_start_token_id = 0
        return T5ForConditionalGeneration(config).double()
    sizes = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    widths = {f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")}
    return BartForConditionalGeneration(
        BartConfig(vocab_size=32, d_model=16, max_position_embeddings=32, dropout=0.0, **sizes, **widths)
    ).double()


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


def assert_equal(model: nn.Module, batch: Any, chunk_logits: int) -> None:
    expected = batch.loss_sum(model(**batch.model_inputs(model)).logits)
    found = loss_sum(model, batch, chunk_logits=chunk_logits)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    again = loss_sum(model, batch, chunk_logits=chunk_logits)
    assert torch.equal(again.detach(), found.detach())  # nothing of the model is left changed
    ours, theirs = gradients(model, 2.5 * found), gradients(model, 2.5 * expected)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize("chunk_logits", [1, 100, 1 << 22])  # a row, a few rows, all rows
@pytest.mark.parametrize("head", HEADS)
def test_chunks_sum_to_the_whole(head: str, chunk_logits: int) -> None:
    model = attached(HEADS[head])
    assert_equal(model, padded.build(sequences(5), pad_id=0), chunk_logits)
    with packed_attention(model):
        assert_equal(model, shared_prefix.build(sequences(5), pad_id=0), chunk_logits)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_encoder_decoders_too(kind: str) -> None:
    """T5 scales what its head reads; BART adds a bias to the logits, so its head isn't last."""
    model = encoder_decoder(kind)
    assert_equal(model, seq2seq.builder_for(model)(sequences(4), pad_id=0), 100)
    assert _HEAD_IS_LAST[model] is (kind == "t5")


def test_no_logits_of_the_whole_batch_are_made() -> None:
    model = attached(HEADS["frozen"])
    batch = padded.build(sequences(5), pad_id=0)
    loss_sum(model, batch)  # the first looks at the model
    head, seen = model.get_base_model().lm_head, []

    def recorded(hidden: Tensor) -> Tensor:
        seen.append(type(head).forward(head, hidden))
        return seen[-1]

    with replaced_forwards({head: recorded}):
        loss_sum(model, batch, chunk_logits=100)
    assert len(seen) > 5
    assert max(logits.numel() for logits in seen) <= 100


def test_hooks_of_a_head_get_all_logits() -> None:
    """They may change them, as accelerate's and users' own do."""
    model = attached(HEADS["frozen"])
    batch = padded.build(sequences(3), pad_id=0)
    hook = model.get_base_model().lm_head.register_forward_hook(lambda *call: 2.0 * call[-1])
    expected = batch.loss_sum(model(**batch.model_inputs(model)).logits)
    assert loss_sum(model, batch, chunk_logits=100).item() == expected.item()
    hook.remove()


def test_without_gradients_the_loss_is_the_same() -> None:
    model = attached(HEADS["frozen"])
    batch = padded.build(sequences(3), pad_id=0)
    with torch.no_grad():
        loss = loss_sum(model, batch)
    assert not loss.requires_grad
    assert loss.item() == loss_sum(model, batch).item()
