"""One batch with another adapter for each sample: what the separate runs give, and what HF PEFT refuses."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from tests.methods.lora.beside_peft import quiet
from tests.methods.tiny_models import BERT, GPT2, LLAMA, T5, VOCABULARY, Family
from torch import Tensor, nn

import manytune
from manytune import AdapterError, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

NAMES = ["second", "__base__", "default", "second"]
IDS = torch.randint(3, VOCABULARY, (4, 7), generator=torch.Generator().manual_seed(2))


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))


def pair(build: Callable[[], nn.Module], **options: Any) -> tuple[PeftModel, Any]:
    """Ours and HF PEFT's with two adapters each, of equal random values."""
    torch.manual_seed(0)
    base = build().double().eval()
    models = []
    for library in (manytune, peft):
        with quiet():
            model = library.get_peft_model(copy.deepcopy(base), library.LoraConfig(**options))
            model.add_adapter("second", library.LoraConfig(**{**options, "r": 2}))
        generator = torch.Generator().manual_seed(1)
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name or "modules_to_save" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        models.append(model.eval())
    return models[0], models[1]


def separately(model: PeftModel, run: Callable[[int], Tensor]) -> list[Tensor]:
    """Each sample in a run of its own, with the adapter that it names in use."""
    results = []
    for row, name in enumerate(NAMES):
        if name == "__base__":
            with model.disable_adapter():
                results.append(run(row))
        else:
            model.set_adapter(name)
            results.append(run(row))
    return results


TEXT_CASES = {
    "linear": (LLAMA, {"target_modules": ["q_proj", "up_proj", "lm_head"]}),
    "embedding": (LLAMA, {"target_modules": ["embed_tokens", "v_proj"]}),
    "conv1d": (GPT2, {"target_modules": ["c_attn", "c_fc"]}),
    "positions": (GPT2, {"target_modules": ["wpe"]}),
    "dora": (LLAMA, {"target_modules": ["q_proj", "up_proj"], "use_dora": True}),
    "head": (LLAMA, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "classifier": (BERT, {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "encoder-decoder": (T5, {"target_modules": ["q", "v", "wo"]}),
}


@pytest.mark.parametrize(("family", "options"), TEXT_CASES.values(), ids=TEXT_CASES.keys())
def test_each_sample_gets_what_its_own_adapter_gives_alone(family: Family, options: dict[str, Any]) -> None:
    mine, theirs = pair(family.build, **options)
    extra = {"decoder_input_ids": IDS[:, :3]} if family is T5 else {}
    mixed = mine(input_ids=IDS, adapter_names=NAMES, **extra).logits
    alone = separately(
        mine,
        lambda row: (
            mine(input_ids=IDS[row : row + 1], **{k: v[row : row + 1] for k, v in extra.items()}).logits
        ),
    )
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=1e-10, atol=1e-10)
    # HF PEFT can't divide one row of positions for all samples, and refuses DoRA.
    if options["target_modules"] != ["wpe"] and "use_dora" not in options:
        oracle = theirs(input_ids=IDS, adapter_names=NAMES, **extra).logits
        torch.testing.assert_close(mixed, oracle, rtol=1e-9, atol=1e-9)


def test_convolutions_of_images_are_divided_among_adapters_too() -> None:
    mine, theirs = pair(Images, target_modules=["conv"], modules_to_save=["head"])
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    mixed = mine(x, adapter_names=NAMES)
    torch.testing.assert_close(mixed, torch.cat(separately(mine, lambda row: mine(x[row : row + 1]))))
    torch.testing.assert_close(mixed, theirs(x, adapter_names=NAMES))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", [LLAMA, T5], ids=str)
def test_generation_gives_each_sample_its_own_adapter_with_beams_as_well(family: Family, beams: int) -> None:
    mine, _ = pair(family.build, target_modules=["q_proj", "v_proj"] if family is LLAMA else ["q", "v"])
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": beams, "do_sample": False}
    mixed = mine.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), adapter_names=NAMES, **options)
    alone = separately(
        mine,
        lambda row: mine.generate(
            input_ids=IDS[row : row + 1], attention_mask=torch.ones(1, IDS.shape[1]), **options
        ),
    )
    assert mixed.tolist() == torch.cat(alone).tolist()
    assert len({tuple(row) for row in mixed[:, -5:].tolist()}) > 1


def test_adapters_that_start_from_the_weights_are_in_place_for_their_own_samples_only() -> None:
    torch.manual_seed(0)
    base = LLAMA.build().double().eval()
    model = get_peft_model(base, LoraConfig(init_lora_weights="pissa", target_modules=["q_proj"])).eval()
    before = base.model.layers[0].self_attn.q_proj.base_layer.weight.clone()
    expected = model(input_ids=IDS).logits
    mixed = model(input_ids=IDS, adapter_names=["default", "__base__", "default", "__base__"]).logits
    torch.testing.assert_close(mixed, expected, rtol=1e-6, atol=1e-6)  # untrained: the base's output for all
    assert torch.equal(base.model.layers[0].self_attn.q_proj.base_layer.weight, before)


def test_the_adapters_in_use_and_what_trains_are_as_before_the_call() -> None:
    model, _ = pair(LLAMA.build, target_modules=["q_proj"])
    trains = [name for name, p in model.named_parameters() if p.requires_grad]
    expected = model(input_ids=IDS).logits
    model(input_ids=IDS, adapter_names=NAMES)
    with pytest.raises(ValueError):
        model(input_ids=IDS, adapter_names=["second"])
    assert torch.equal(model(input_ids=IDS).logits, expected)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trains
    assert model.active_adapters == ["default"]


def test_disabled_adapters_win_over_the_names() -> None:
    model, _ = pair(LLAMA.build, target_modules=["q_proj"])
    with model.disable_adapter():
        plain = model(input_ids=IDS).logits
        assert torch.equal(model(input_ids=IDS, adapter_names=NAMES).logits, plain)


REFUSALS: dict[str, tuple[list[str], Callable[[Any], Any]]] = {
    "training mode": (NAMES, lambda model: model.train()),
    "too few names": (NAMES[:3], lambda model: None),
    "unknown names": (["b", "default", "a", "b"], lambda model: None),
    "merged": (NAMES, lambda model: model.merge_adapter()),
}


@pytest.mark.parametrize(("names", "prepare"), REFUSALS.values(), ids=REFUSALS.keys())
@pytest.mark.parametrize("call", ["forward", "generate"])
def test_what_peft_refuses_is_refused_with_its_words(
    names: list[str], prepare: Callable[[Any], Any], call: str
) -> None:
    extra = {"max_new_tokens": 2} if call == "generate" else {}
    said = []
    for model in pair(LLAMA.build, task_type="CAUSAL_LM", target_modules=["q_proj"]):
        prepare(model)
        with pytest.raises(ValueError) as error:
            getattr(model, call)(input_ids=IDS, adapter_names=names, **extra)
        said.append(str(error.value))
    assert said[0].startswith(said[1].split(".")[0])


def test_a_norm_trained_in_full_is_a_type_error_that_lists_what_is_possible() -> None:
    said = []
    for model in pair(LLAMA.build, target_modules=["q_proj"], modules_to_save=["norm"]):
        with pytest.raises(TypeError) as error:
            model(input_ids=IDS, adapter_names=NAMES)
        said.append(str(error.value).rstrip("."))
    assert said[0].startswith(said[1])


def test_a_soft_prompt_acts_on_whole_batches_and_says_so() -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = get_peft_model(LLAMA.build(), config).eval()
    message = re.escape("Cannot pass `adapter_names` with PROMPT_TUNING: its adapters act on whole batches.")
    with pytest.raises(AdapterError, match=message):
        model(input_ids=IDS, adapter_names=["default"] * 4)


def test_attention_with_an_adapter_within_is_refused() -> None:
    model = get_peft_model(
        nn.TransformerEncoderLayer(8, 2, batch_first=True), LoraConfig(target_modules=["self_attn"])
    ).eval()
    with pytest.raises(AdapterError, match="with adapters on a MultiheadAttention"):
        model(torch.randn(2, 3, 8), adapter_names=["default", "__base__"])
