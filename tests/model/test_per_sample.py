"""One batch with another adapter for each sample: what the separate runs give, and what HF PEFT refuses."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import peft
import pytest
import torch
from tests.methods.lora.compared_with_peft import quiet
from tests.methods.tiny_models import BERT, GPT2, LLAMA, T5, VOCABULARY, Family
from torch import Tensor, nn

import manytune
from manytune import AdapterError, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from manytune.methods.registry import peft_config_from
from manytune.model import per_sample

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


@contextmanager
def ways() -> Iterator[list[str]]:
    """Which of the two ways calls take."""
    taken: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mixed_samples", "row_by_row"):
            plain = getattr(per_sample, name)

            def noted(*args: Any, name: str = name, plain: Any = plain) -> Any:
                taken.append(name)
                return plain(*args)

            patch.setattr(per_sample, name, noted)
        yield taken


TEXT_CASES = {
    "linear": (LLAMA, {"target_modules": ["q_proj", "up_proj", "lm_head"]}),
    "embedding": (LLAMA, {"target_modules": ["embed_tokens", "v_proj"]}),
    "conv1d": (GPT2, {"target_modules": ["c_attn", "c_fc"]}),
    "positions": (GPT2, {"target_modules": ["wpe"]}),
    "head": (LLAMA, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "classifier": (BERT, {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "encoder-decoder": (T5, {"target_modules": ["q", "v", "wo"]}),
}


@pytest.mark.parametrize("gradients", [False, True], ids=["mixed forward", "with gradients"])
@pytest.mark.parametrize(("family", "options"), TEXT_CASES.values(), ids=TEXT_CASES.keys())
def test_each_sample_gets_what_its_own_adapter_gives_alone(
    family: Family, options: dict[str, Any], gradients: bool
) -> None:
    mine, theirs = pair(family.build, **options)
    extra = {"decoder_input_ids": IDS[:, :3]} if family is T5 else {}
    with torch.set_grad_enabled(gradients), ways() as taken:
        mixed = mine(input_ids=IDS, adapter_names=NAMES, **extra).logits
    assert taken == ["row_by_row" if gradients else "mixed_samples"]
    alone = separately(
        mine,
        lambda row: (
            mine(input_ids=IDS[row : row + 1], **{k: v[row : row + 1] for k, v in extra.items()}).logits
        ),
    )
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=1e-10, atol=1e-10)
    if options["target_modules"] != ["wpe"]:  # one row of positions for all samples: HF PEFT can't divide it
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


OTHER_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("lora", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "pissa": ("lora", {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}),
    "rslora": ("lora", {"target_modules": ["q_proj"], "use_rslora": True, "lora_alpha": 3}),
    "adalora": ("adalora", {"target_modules": ["q_proj", "v_proj"], "total_step": 10}),
    "vera": ("vera", {"target_modules": ["q_proj", "o_proj"], "r": 4}),
    "ia3": ("ia3", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "bottleneck": ("bottleneck", {"bottleneck_size": 4}),
    "parallel bottleneck": ("bottleneck", {"bottleneck_size": 4, "style": "parallel"}),
    "norms": ("selective", {"parameters": ["norm"]}),
}


@pytest.mark.parametrize(("method", "options"), OTHER_METHODS.values(), ids=OTHER_METHODS.keys())
def test_other_methods_answer_for_each_sample_too(method: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = get_peft_model(LLAMA.build().double().eval(), peft_config_from(method, **options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", manytune.PeftWarning)  # what two PiSSA adapters see of the base
        model.add_adapter("second", peft_config_from(method, **options))
    generator = torch.Generator().manual_seed(1)
    for name in ("default", "second"):
        for key, tensor in model.tuner.state(name).items():
            if tensor.is_floating_point() and "ranknum" not in key:
                tensor.data += 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    if hasattr(model.tuner, "set_adapter"):
        model.set_adapter("default")  # values of a selective method are put into the model
    model.eval()
    with torch.no_grad(), ways() as taken:
        mixed = model(input_ids=IDS, adapter_names=NAMES).logits
        alone = torch.cat(separately(model, lambda row: model(input_ids=IDS[row : row + 1]).logits))
    assert taken == ["mixed_samples"]
    torch.testing.assert_close(mixed, alone, rtol=1e-7, atol=1e-7)
    assert not torch.allclose(alone[0], alone[2], atol=1e-3)


def test_a_scale_that_was_set_counts() -> None:
    model, _ = pair(LLAMA.build, target_modules=["q_proj"])
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("second", 3.0)
    with torch.no_grad():
        mixed = model(input_ids=IDS, adapter_names=NAMES).logits
        alone = torch.cat(separately(model, lambda row: model(input_ids=IDS[row : row + 1]).logits))
    torch.testing.assert_close(mixed, alone, rtol=1e-10, atol=1e-10)


def test_weights_that_changed_between_two_calls_count() -> None:
    model, _ = pair(LLAMA.build, target_modules=["q_proj"])
    with torch.no_grad():
        model(input_ids=IDS, adapter_names=NAMES)
        for name, parameter in model.named_parameters():
            if "lora_B.second" in name:
                parameter.data.mul_(-2)
        mixed = model(input_ids=IDS, adapter_names=NAMES).logits
        alone = torch.cat(separately(model, lambda row: model(input_ids=IDS[row : row + 1]).logits))
    torch.testing.assert_close(mixed, alone, rtol=1e-10, atol=1e-10)


def test_gradients_reach_the_adapters_that_samples_name() -> None:
    model, theirs = pair(LLAMA.build, target_modules=["q_proj"])
    grads = []
    for one in (model, theirs):
        one.base_model.set_adapter(["default", "second"])
        one.eval()
        one(input_ids=IDS, adapter_names=NAMES).logits.square().sum().backward()
        grads.append({n: p.grad for n, p in one.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 4
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name])


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


def test_a_parallel_bottleneck_with_a_trained_head_says_that_it_answers_alone_only() -> None:
    config = peft_config_from("bottleneck", bottleneck_size=4, style="parallel", task_type="SEQ_CLS")
    model = get_peft_model(BERT.build(), config).eval()
    with (
        torch.no_grad(),
        pytest.raises(
            AdapterError, match="reads the input of another layer, which works in the mixed forward alone"
        ),
    ):
        model(input_ids=IDS, adapter_names=["default", "__base__", "default", "__base__"])
