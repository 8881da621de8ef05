"""`adapter_names=` in float32 on a CPU: adapters' weights where they are, and the base through oneDNN.

Greedy tokens are those of each adapter alone, whatever was called or changed before.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.kernels.machine import assert_near, needs_compiler, without_kernels
from tests.methods.tiny_models import GPT2, LLAMA, T5, VOCABULARY, Family
from torch import Tensor

from manytune import LoraConfig, PeftModel, get_peft_model
from manytune.methods.registry import peft_config_from
from manytune.mixed.own_updates import OwnUpdate
from manytune.model.mixed_samples import reordered_weights

NAMES = ["second", "__base__", "default", "second"]
IDS = torch.randint(3, VOCABULARY, (4, 7), generator=torch.Generator().manual_seed(2))
GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
TARGETS = {
    LLAMA: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"],
    GPT2: ["c_attn", "c_fc"],
    T5: ["q", "v", "wo"],
}


def model_of(family: Family = LLAMA, **options: Any) -> PeftModel:
    torch.manual_seed(0)
    options = {"target_modules": TARGETS[family], "r": 8, **options}
    model = get_peft_model(family.build().eval(), LoraConfig(**options))
    model.add_adapter("second", LoraConfig(**{**options, "r": 3, "lora_alpha": 6}))
    draw(model)
    return model.eval()


def draw(model: PeftModel, *, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


def tokens(model: PeftModel, **options: Any) -> list[list[int]]:
    found = model.generate(
        input_ids=IDS, attention_mask=torch.ones_like(IDS), adapter_names=NAMES, **{**GREEDY, **options}
    )
    return found.tolist()


def alone(model: PeftModel, run: Callable[[int], Any]) -> list[Any]:
    """Each sample in a run of its own, with the adapter that it names in use."""
    results = []
    for row, name in enumerate(NAMES):
        with model.using(name):
            results.append(run(row))
    return results


def tokens_alone(model: PeftModel, **options: Any) -> list[list[int]]:
    def run(row: int) -> list[int]:
        mask = torch.ones(1, IDS.shape[1])
        found = model.generate(input_ids=IDS[row : row + 1], attention_mask=mask, **{**GREEDY, **options})
        return found[0].tolist()

    return alone(model, run)


def native_calls(monkeypatch: pytest.MonkeyPatch) -> list[OwnUpdate]:
    """Which updates are added from the adapters' own weights."""
    seen: list[OwnUpdate] = []
    plain = OwnUpdate.add
    monkeypatch.setattr(OwnUpdate, "add", lambda self, z, y: seen.append(self) or plain(self, z, y))
    return seen


@needs_compiler
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", TARGETS, ids=str)
def test_greedy_tokens_are_those_of_each_adapter_alone(
    family: Family, beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(family)
    expected = tokens_alone(model, num_beams=beams)
    seen = native_calls(monkeypatch)
    assert tokens(model, num_beams=beams) == expected
    assert tokens(model, num_beams=beams) == expected
    assert seen and (family is GPT2 or reordered_weights(model.tuner).nbytes)
    assert len({tuple(row[-6:]) for row in expected}) > 2


def test_without_a_compiler_tokens_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    expected = tokens_alone(model)
    seen = native_calls(monkeypatch)
    without_kernels(monkeypatch)
    assert tokens(model) == expected
    assert not seen and not reordered_weights(model.tuner).nbytes


def half(model: PeftModel) -> None:
    model.to(torch.bfloat16)
    model.to(torch.float32)


def other_base_weights(model: PeftModel) -> None:
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data.mul_(1.3)


def loaded(model: PeftModel) -> None:
    model.load_state_dict({name: -value for name, value in model.state_dict().items()})


def merged(model: PeftModel) -> None:
    model.merge_adapter(["second"])
    model.unmerge_adapter()


def merged_roughly(model: PeftModel) -> None:
    model.merge_adapter(["second"], low_memory=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "base_layer" in name:
                parameter.mul_(1.2)
    model.unmerge_adapter()


def trained(model: PeftModel) -> None:
    model.set_adapter("second")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=5.0)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()


def scaled(model: PeftModel) -> None:
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("second", -4.0)


CHANGES = (
    half,
    other_base_weights,
    loaded,
    merged,
    merged_roughly,
    trained,
    scaled,
    lambda model: draw(model, seed=7),
)


@needs_compiler
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.filterwarnings("ignore")
def test_whatever_changed_since_the_last_call_counts(change: Callable[[PeftModel], None]) -> None:
    model = model_of()
    before = tokens(model)
    change(model)
    model.eval()
    expected = tokens_alone(model)
    assert tokens(model) == expected
    assert change in (half, merged) or before != expected


@needs_compiler
def test_a_merged_model_is_refused_and_serves_again_once_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    expected = tokens(model)
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged"):
        tokens(model)
    model.unmerge_adapter()
    assert tokens(model) == expected


@needs_compiler
def test_calls_in_and_outside_of_inference_mode_may_follow_each_other() -> None:
    """Stacks that were made in inference mode couldn't be written to by a call outside of it."""
    model = get_peft_model(LLAMA.build().eval(), peft_config_from("ia3", target_modules=["k_proj", "v_proj"]))
    lora = model_of()
    for one, names in ((model, ["default", "__base__"]), (lora, ["default", "second"])):
        one.eval()
        found = []
        for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
            with mode():
                found.append(one(input_ids=IDS[:2], adapter_names=names).logits.clone())
        torch.testing.assert_close(found[1:], found[:1] * 2)


@needs_compiler
def test_logits_are_those_of_each_adapter_alone_and_one_forward_keeps_no_copies() -> None:
    model = model_of()
    with torch.no_grad():
        mixed = model(input_ids=IDS, adapter_names=NAMES).logits
        single = torch.cat(alone(model, lambda row: model(input_ids=IDS[row : row + 1]).logits))
    torch.testing.assert_close(mixed, single, rtol=1e-4, atol=1e-4)
    assert reordered_weights(model.tuner).nbytes == 0


def check_gradient(model: PeftModel, embedded: Tensor) -> None:
    """The inputs' gradient of a mixed call is the one that each row has with its adapter alone."""
    found = embedded.grad.clone()
    embedded.grad = None
    for part in alone(model, lambda row: model(inputs_embeds=embedded[row : row + 1]).logits.square().sum()):
        part.backward()
    assert_near(found, embedded.grad, tolerance=1e-4)


@needs_compiler
def test_gradients_of_inputs_are_those_of_each_adapter_alone() -> None:
    model = model_of()
    model.requires_grad_(False)
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
    tokens(model)  # what it keeps isn't for gradients
    model(inputs_embeds=embedded, adapter_names=NAMES).logits.square().sum().backward()
    check_gradient(model, embedded)


@needs_compiler
def test_gradients_that_are_turned_on_within_a_call_reach_the_inputs() -> None:
    model = model_of()
    model.requires_grad_(False)
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()

    def turned_on(module: Any, args: Any, kwargs: Any) -> None:
        torch.set_grad_enabled(True)

    hook = model.get_base_model().register_forward_pre_hook(turned_on, with_kwargs=True)
    try:
        with torch.no_grad():
            logits: Tensor = model(inputs_embeds=embedded, adapter_names=NAMES).logits
    finally:
        hook.remove()
        torch.set_grad_enabled(True)
    logits.square().sum().backward()
    check_gradient(model, embedded)


@needs_compiler
def test_training_after_a_call_gives_the_bits_that_it_gives_without_one() -> None:
    grads = []
    for called in (False, True):
        model = model_of()
        if called:
            tokens(model)
        model(input_ids=IDS, labels=IDS).loss.backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert grads[0] and all(map(torch.equal, *grads))


@needs_compiler
def test_a_copy_of_the_model_brings_no_copies_of_weights_and_answers_alike() -> None:
    model = model_of()
    expected = tokens(model)
    other = copy.deepcopy(model)
    assert reordered_weights(other.tuner).nbytes == 0
    assert tokens(other) == expected


@needs_compiler
def test_what_a_call_keeps_is_gone_with_the_model_and_when_it_cannot_be_used() -> None:
    model = model_of()
    tokens(model)
    kept = weakref.ref(reordered_weights(model.tuner))
    base = 4 * sum(
        module.weight.numel() for path, module in model.named_modules() if path.endswith("base_layer")
    )
    assert kept().nbytes == base
    model.double()
    tokens(model)
    assert kept().nbytes == 0
    plain = model.unload()
    del model
    gc.collect()
    assert kept() is None and plain is not None


@needs_compiler
def test_samples_that_name_the_base_alone_are_the_base() -> None:
    model = model_of()
    options = {**GREEDY, "input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    with model.disable_adapter():
        expected = model.generate(**options).tolist()
    assert model.generate(adapter_names=["__base__"] * 4, **options).tolist() == expected


@needs_compiler
def test_sampling_streamers_and_dictionaries_are_transformers_own() -> None:
    model = model_of()
    seen: list[Tensor] = []

    class Streamer:
        def put(self, value: Tensor) -> None:
            seen.append(value)

        def end(self) -> None:
            seen.append(torch.empty(0))

    ids, mask = IDS[:1], torch.ones(1, 7)
    options = {**GREEDY, "do_sample": True, "temperature": 1.5, "top_k": 20, "repetition_penalty": 1.2}
    options |= {
        "input_ids": ids,
        "attention_mask": mask,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    torch.manual_seed(3)
    mixed = model.generate(adapter_names=["second"], streamer=Streamer(), **options)
    torch.manual_seed(3)
    with model.using("second"):
        single = model.generate(**options)
    assert mixed.sequences.tolist() == single.sequences.tolist() and len(mixed.scores) == 6
    torch.testing.assert_close(torch.stack(mixed.scores), torch.stack(single.scores), rtol=1e-3, atol=1e-3)
    assert len(seen) == 8


@needs_compiler
@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"r": 80},
        {"init_lora_weights": "pissa"},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_what_the_kernel_does_not_take_goes_through_stacks_next_to_what_it_takes(
    options: dict[str, Any],
) -> None:
    model = model_of(**options)
    expected = tokens_alone(model)
    assert tokens(model) == expected
    assert tokens(model) == expected
