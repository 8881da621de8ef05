"""LoRA+ (a learning rate for B) and LoRA-FA (A frozen)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from tests.methods.tiny_models import GPT2, LLAMA

from manytune import ConfigError, IA3Config, LoraConfig, PeftModel, get_peft_model, lora_plus_groups


def adapted(**options: object) -> PeftModel:
    torch.manual_seed(1)
    return get_peft_model(LLAMA.build(), LoraConfig(r=4, target_modules="all-linear", **options))  # type: ignore[arg-type]


def by_rate(groups: list[dict[str, object]], model: PeftModel) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])  # type: ignore[misc]
        for group in groups
        for parameter in group["params"]  # type: ignore[attr-defined]
    }


def test_rates_are_pefts() -> None:
    model = adapted()
    ours = by_rate(lora_plus_groups(model, 1e-3, 8.0, weight_decay=0.1), model)
    optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=8.0, loraplus_weight_decay=0.1
    )
    theirs = by_rate(optimizer.param_groups, model)
    assert {name: rates[0] for name, rates in ours.items()} == {n: rates[0] for n, rates in theirs.items()}


def test_everything_that_trains_is_in_one_group_and_vectors_do_not_decay() -> None:
    model = get_peft_model(GPT2.build(), LoraConfig(r=4, target_modules=["c_attn", "wpe"], bias="all"))
    found = by_rate(lora_plus_groups(model, 1e-3, 4.0, weight_decay=0.1), model)
    assert set(found) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, (rate, decay) in found.items():
        assert rate == (4e-3 if "lora_B" in name or "lora_embedding_B" in name else 1e-3)
        assert decay == (0.0 if name.endswith("bias") else 0.1)


def test_it_trains() -> None:
    model = adapted().train()
    optimizer = torch.optim.AdamW(lora_plus_groups(model, 1e-3))
    losses = []
    for _ in range(10):
        loss = model(**LLAMA.inputs()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_a_model_without_lora_is_refused() -> None:
    with pytest.raises(ConfigError, match="no B that trains"):
        lora_plus_groups(get_peft_model(LLAMA.build(), IA3Config()), 1e-3)


@pytest.mark.parametrize(("lr", "ratio"), [(0.0, 16.0), (1e-3, -1.0)])
def test_rates_must_be_positive(lr: float, ratio: float) -> None:
    with pytest.raises(ConfigError, match="positive lr and ratio"):
        lora_plus_groups(adapted(), lr, ratio)


def test_with_a_frozen_only_b_trains_and_b_gets_the_same_gradient() -> None:
    free, frozen = adapted(), adapted(freeze_a=True)
    for model in (free, frozen):
        model(**LLAMA.inputs()).loss.backward()
    trained = {name for name, parameter in frozen.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in frozen.named_parameters() if ".lora_B." in name}
    expected = dict(free.named_parameters())
    for name, parameter in frozen.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, expected[name].grad)  # type: ignore[arg-type]


def test_a_stays_frozen_through_switching_and_disabling() -> None:
    model = adapted(freeze_a=True)
    model.add_adapter("free", LoraConfig(r=2, target_modules=["q_proj"]))
    model.set_adapter("free")
    model.set_adapter("default")
    with model.disable_adapter():
        pass
    assert not [n for n, p in model.named_parameters() if p.requires_grad and "lora_A" in n]
    model.set_adapter("free")
    assert [n for n, p in model.named_parameters() if p.requires_grad and "lora_A" in n]


def test_files_know_nothing_of_it(tmp_path: Path) -> None:
    adapted(freeze_a=True).save_pretrained(tmp_path)
    assert "freeze_a" not in (tmp_path / "adapter_config.json").read_text()
    loaded = PeftModel.from_pretrained(LLAMA.build(), tmp_path, is_trainable=True)
    assert [n for n, p in loaded.named_parameters() if p.requires_grad and "lora_A" in n]


def test_an_embeddings_a_cannot_be_frozen_since_it_starts_at_zero() -> None:
    with pytest.raises(ConfigError, match="freeze_a=True is not supported for Embedding"):
        get_peft_model(GPT2.build(), LoraConfig(target_modules=["wpe"], freeze_a=True))
