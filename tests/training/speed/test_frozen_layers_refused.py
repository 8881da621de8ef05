"""`training.cache_frozen` refuses what it doesn't suit, and names the obstacle."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.training.batches import tiny
from tests.training.speed.test_frozen_layers import ROWS, model, state, trained
from tests.training.tiny_run import as_rows, settings
from torch import nn

from manytune.errors import RunError
from manytune.methods.registry import peft_config_from
from manytune.model.attach import get_peft_model
from manytune.training.loop.train import train_model
from manytune.training.speed import frozen_layers
from manytune.training.speed.compilation import repeated_layers


def refusal(attached: nn.Module, layout: str = "padded") -> str:
    with pytest.raises(RunError) as caught:
        train_model(attached, as_rows(ROWS), settings(cache_frozen=True, batching=layout))
    message = str(caught.value)
    assert message.startswith("training.cache_frozen: ")
    assert "set training.cache_frozen to false" in message
    return message


def test_a_trained_first_layer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    attached = model("llama", monkeypatch, layers=[0, 2])
    before = state(attached)
    message = refusal(attached)
    assert "the first layer (base_model.model.model.layers.0) is trained: " in message
    assert "layers.0.self_attn.q_proj.lora_A.default.weight and 13 more" in message
    assert "method.layers_to_transform" in message
    assert state(attached) == before


@pytest.mark.parametrize(("kind", "name"), [("llama", "model.embed_tokens"), ("gpt2", "transformer.wpe")])
def test_trained_embeddings_are_named(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attached = model(kind, monkeypatch, layers=[2])
    attached.get_submodule(f"base_model.model.{name}").weight.requires_grad_(True)
    assert f".{name}.weight" in refusal(attached)


@pytest.mark.parametrize("place", ["embedding", "attention", "adapter"])
def test_dropout_below_is_named(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attached = model("gpt2", monkeypatch, layers=[2])
    base = attached.get_base_model()
    if place == "embedding":
        base.transformer.drop.p = 0.1
    elif place == "attention":
        base.transformer.h[0].attn.attn_dropout.p = 0.1
    else:
        attached = model("gpt2", monkeypatch, layers=[0, 2], lora_dropout=0.1)
        for name, parameter in attached.named_parameters():
            parameter.requires_grad_("lora_" in name and ".h.2." in name)
    named = {"embedding": "transformer.drop", "attention": "attn_dropout", "adapter": "lora_dropout"}[place]
    message = refusal(attached)
    assert named in message and "p = 0.1" in message


def test_dropout_above_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    attached = model("gpt2", monkeypatch, layers=[2])
    attached.get_base_model().transformer.h[1].attn.attn_dropout.p = 0.1
    result = trained(attached, cache=True)
    assert result.cache is not None and result.cache.layers == 1


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_virtual_tokens_are_refused(method: str) -> None:
    config = peft_config_from(method, task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert "puts virtual tokens before each row" in refusal(get_peft_model(tiny.model("llama"), config))


def test_positions_that_depend_on_the_batch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    attached = model("llama", monkeypatch, layers=[2])
    attached.get_base_model().model.rotary_emb.rope_type = "dynamic"
    assert "longest row of a batch (rope_type 'dynamic')" in refusal(attached)


def test_layers_that_are_not_named_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    attached = model("llama", monkeypatch, layers=[2])
    monkeypatch.setattr(attached.get_base_model(), "_no_split_modules", [])
    assert "LlamaForCausalLM doesn't say which of its modules are its layers" in refusal(attached)


def test_a_model_that_looks_ahead_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    attached = model("llama", monkeypatch, layers=[2])
    first = repeated_layers(attached)[0]
    first.register_forward_hook(lambda layer, args, output: output + output.mean(1, keepdim=True))
    assert "a token's depends on later tokens" in refusal(attached)


def test_too_little_memory_is_said_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    attached = model("llama", monkeypatch, layers=[2])
    monkeypatch.setattr(frozen_layers, "available_memory", lambda: 1000)
    message = refusal(attached)
    assert "2 of 3 layers run once for each of 19 distinct prefixes" in message
    assert "more than half of the 0.0 MiB that are available" in message


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max", 7000 * 1024), (str(5000 * 1024), 4000 * 1024), (str(9000 * 1024), 7000 * 1024)],
)
def test_available_memory_is_the_machines_or_the_containers(
    limit: str, expected: int, tmp_path: Path
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable:   7000 kB\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{1000 * 1024}\n")
    assert frozen_layers.available_memory(processes=tmp_path, group=tmp_path) == expected


def test_memory_is_known_where_nothing_describes_it(tmp_path: Path) -> None:
    assert frozen_layers.available_memory(processes=tmp_path, group=tmp_path) > 1 << 28
