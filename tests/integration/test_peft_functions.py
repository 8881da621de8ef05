"""HF PEFT's free functions and the lesser methods of its model, compared with the installed HF PEFT."""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
from tests.methods.lora.compared_with_peft import Net, quiet
from tests.methods.tiny_models import BERT, LLAMA, T5, Family
from torch import nn

import manytune
from manytune import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftMixedModel,
    PeftModel,
    PeftWarning,
    get_peft_model,
)

IDS = torch.arange(12).view(2, 6) + 3


def both(family: Family = LLAMA, **options: Any) -> tuple[Any, Any]:
    models = []
    for library in (manytune, peft):
        with quiet():
            models.append(library.get_peft_model(family.build(), library.LoraConfig(**options)))
    return models[0], models[1]


# -- status


@pytest.mark.parametrize("state", ["fresh", "second", "disabled", "merged", "frozen"])
def test_layer_and_model_status_are_pefts(state: str) -> None:
    seen = []
    for library, model in zip(
        (manytune, peft),
        both(task_type="CAUSAL_LM", target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"]),
        strict=True,
    ):
        if state == "second":
            model.add_adapter("second", library.LoraConfig(target_modules=["q_proj"]))
        elif state == "disabled":
            model.base_model.disable_adapter_layers()
        elif state == "merged":
            model.merge_adapter()
        elif state == "frozen":
            model.set_requires_grad("default", requires_grad=False)
        layers = [dataclasses.asdict(layer) for layer in model.get_layer_status()]
        seen.append((layers, dataclasses.asdict(model.get_model_status())))
    assert seen[0] == seen[1]


def test_layers_that_disagree_are_irregular() -> None:
    for model in both(target_modules=["q_proj"]):
        layer = model.base_model.model.model.layers[0].self_attn.q_proj
        layer.enable_adapters(False)
        assert model.get_model_status().enabled == "irregular"
        layer.enable_adapters(True)
        layer.merge()
        assert model.get_model_status().merged_adapters == "irregular"


def test_status_needs_adapter_layers() -> None:
    with pytest.raises(ValueError, match="No adapter layers found in the model"):
        manytune.get_layer_status(nn.Linear(2, 2))
    config = manytune.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(TypeError, match="need adapters in layers; PROMPT_TUNING has none"):
        manytune.get_model_status(get_peft_model(LLAMA.build(), config))


# -- injection and state dicts


def test_injected_adapters_have_pefts_names_in_memory_and_in_state_dicts() -> None:
    seen = []
    for library in (manytune, peft):
        config = library.LoraConfig(target_modules=["q", "emb"], modules_to_save=["head"], use_dora=True)
        model = library.inject_adapter_in_model(config, Net())
        assert type(model) is Net
        trains = {name for name, p in model.named_parameters() if p.requires_grad}
        state = library.get_peft_model_state_dict(model)
        status = library.get_model_status(model)
        shapes = {key: value.shape for key, value in state.items()}
        seen.append((trains, shapes, status.adapter_model_type, list(model.peft_config)))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("injected", [False, True])
def test_a_state_dict_set_on_another_model_gives_the_same_outputs(injected: bool) -> None:
    def attach() -> Any:
        config = LoraConfig(target_modules=["q", "emb"], init_lora_weights=False)
        return (manytune.inject_adapter_in_model if injected else _wrap)(config, Net())

    def _wrap(config: Any, model: nn.Module) -> Any:
        return get_peft_model(model, config)

    ids = torch.tensor([[1, 2, 3]])
    first, second = attach(), attach()
    with torch.no_grad():
        for parameter in second.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    assert not torch.equal(first(ids), second(ids))
    result = manytune.set_peft_model_state_dict(second, manytune.get_peft_model_state_dict(first))
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert torch.equal(first(ids), second(ids))


def test_tensors_are_taken_from_a_state_dict_that_was_gathered_elsewhere() -> None:
    for library, model in zip((manytune, peft), both(target_modules=["q_proj"]), strict=True):
        gathered = {name: value + 1 for name, value in model.state_dict().items()}
        taken = library.get_peft_model_state_dict(model, state_dict=gathered)
        here = library.get_peft_model_state_dict(model)
        assert taken.keys() == here.keys()
        assert all(torch.equal(taken[key], here[key] + 1) for key in here)


def test_a_state_dict_decides_what_is_targeted_and_a_difference_is_said() -> None:
    state = manytune.get_peft_model_state_dict(
        manytune.inject_adapter_in_model(LoraConfig(target_modules=["q"]), Net())
    )
    with pytest.warns(RuntimeWarning, match=re.escape("Only the config names ['layers.0.v', 'layers.1.v']")):
        model = manytune.inject_adapter_in_model(LoraConfig(target_modules=["v"]), Net(), state_dict=state)
    assert manytune.get_peft_model_state_dict(model).keys() == state.keys()


def test_a_second_injection_adds_an_adapter_and_warns() -> None:
    model = manytune.inject_adapter_in_model(LoraConfig(target_modules=["q"]), Net())
    with pytest.warns(PeftWarning, match="Already found a `peft_config` attribute in the model"):
        manytune.inject_adapter_in_model(LoraConfig(target_modules=["v"]), model, "second")
    assert list(model.peft_config) == ["default", "second"]
    assert all(".second." in name for name, p in model.named_parameters() if p.requires_grad)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(torch.tensor([[1, 2]])), model(torch.tensor([[1, 2]])))


def test_a_soft_prompt_cannot_be_injected() -> None:
    config = manytune.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="puts adapter layers into a model, and PROMPT_TUNING has none"):
        manytune.inject_adapter_in_model(config, LLAMA.build())


def test_a_plain_model_has_no_adapter_state() -> None:
    with pytest.raises(ValueError, match=r"Net has no adapters\. Expected the result of get_peft_model"):
        manytune.get_peft_model_state_dict(Net())


# -- embeddings saved with the adapter


@pytest.mark.parametrize("save", ["auto", True, False])
@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "embed_tokens"], ["lm_head"]], ids=str)
def test_embedding_tables_are_saved_where_peft_saves_them(
    save: Any, targets: list[str], tmp_path: Path
) -> None:
    for name, model in zip(("mine", "theirs"), both(target_modules=targets), strict=True):
        with quiet():
            model.save_pretrained(tmp_path / name, save_embedding_layers=save)
    files = [
        safetensors.torch.load_file(tmp_path / n / "adapter_model.safetensors") for n in ("mine", "theirs")
    ]
    assert files[0].keys() == files[1].keys()
    PeftModel.from_pretrained(LLAMA.build(), tmp_path / "theirs")


def test_saved_tables_come_back_into_the_base(tmp_path: Path) -> None:
    model = get_peft_model(LLAMA.build(), LoraConfig(target_modules=["q_proj"]))
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = 1.0
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    again = PeftModel.from_pretrained(LLAMA.build(), tmp_path)
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_a_custom_model_says_that_its_embeddings_are_not_saved(tmp_path: Path) -> None:
    model = get_peft_model(Net(), LoraConfig(target_modules=["emb"]))
    with pytest.warns(PeftWarning, match="Could not identify embedding layer"):
        model.save_pretrained(tmp_path, save_embedding_layers=True)
    assert not [k for k in manytune.get_peft_model_state_dict(model) if "base_layer" in k]


# -- PiSSA and OLoRA as plain LoRA


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_converted_adapter_gives_the_trained_outputs_on_the_untouched_base(
    init: str, use_rslora: bool, tmp_path: Path
) -> None:
    base = LLAMA.build().double()
    config = LoraConfig(r=4, lora_alpha=6, init_lora_weights=init, use_rslora=use_rslora)
    model = get_peft_model(copy.deepcopy(base), config)
    model.save_pretrained(tmp_path / "initial")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=tmp_path / "initial")
    assert model.peft_config["default"].r == 4
    expected = model.eval()(input_ids=IDS).logits
    for library in (manytune, peft):
        with quiet():
            plain = library.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "plain")
        assert (plain.peft_config["default"].r, plain.peft_config["default"].init_lora_weights) == (8, True)
        torch.testing.assert_close(plain(input_ids=IDS).logits, expected, rtol=1e-6, atol=1e-6)


def test_patterns_with_rank_stabilisation_cannot_be_converted(tmp_path: Path) -> None:
    model = get_peft_model(Net(), LoraConfig(target_modules=["q"], use_rslora=True, rank_pattern={"q": 2}))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not supported when using `rank_pattern` or `alpha_pattern`"):
        model.save_pretrained(tmp_path / "x", path_initial_model_for_weight_conversion=tmp_path)


@pytest.mark.parametrize(
    "config", [IA3Config(), AdaLoraConfig(total_step=10)], ids=lambda config: str(config.peft_type)
)
def test_only_lora_adapters_can_be_converted(config: PeftConfig, tmp_path: Path) -> None:
    model = get_peft_model(LLAMA.build(), config)
    message = f"path_initial_model_for_weight_conversion is for LoRA adapters, found {config.peft_type}"
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path / "x", path_initial_model_for_weight_conversion=tmp_path)


def test_an_initial_adapter_of_another_rank_is_refused(tmp_path: Path) -> None:
    get_peft_model(Net(), LoraConfig(r=2, target_modules=["q"])).save_pretrained(tmp_path)
    model = get_peft_model(Net(), LoraConfig(r=3, target_modules=["q"]))
    with pytest.raises(ValueError, match=r"lora_A.weight of shape \(3, 6\), .* found \(2, 6\)"):
        model.save_pretrained(tmp_path / "x", path_initial_model_for_weight_conversion=tmp_path)


# -- the rest of the model


def test_a_mixed_model_uses_several_adapters_and_refuses_what_cannot_be_mixed() -> None:
    model = get_peft_model(Net(), LoraConfig(target_modules=["q"], init_lora_weights=False), mixed=True)
    assert isinstance(model, PeftMixedModel)
    model.add_adapter("second", LoraConfig(target_modules=["v"], init_lora_weights=False))
    model.set_adapter(["default", "second"])
    assert model.active_adapters == ["default", "second"]
    for name in model.targeted_module_names:
        assert name in ("layers.0.q", "layers.1.q", "layers.0.v", "layers.1.v")
    with pytest.raises(ValueError, match="'IA3' is not compatible with the `PeftMixedModel`"):
        model.add_adapter("third", manytune.IA3Config(target_modules=["q"]))


@pytest.mark.parametrize("reentrant", [None, True, False])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_the_same_parameters_get_gradients_with_checkpointing(reentrant: bool | None, when: str) -> None:
    options = {} if reentrant is None else {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    base = LLAMA.build()
    if when == "before":
        base.gradient_checkpointing_enable(**options)
    model = get_peft_model(base, LoraConfig(init_lora_weights=False)).train()
    if when == "after":
        model.gradient_checkpointing_enable(**options)
    model(input_ids=IDS, labels=IDS).loss.backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert with_gradient == {n for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_a_base_prepared_for_kbit_training_is_frozen_in_float32_and_passes_gradients_on() -> None:
    base = LLAMA.build().bfloat16()
    assert manytune.prepare_model_for_kbit_training(base) is base
    assert {(p.dtype, p.requires_grad) for p in base.parameters()} == {(torch.float32, False)}
    assert base(input_ids=IDS).logits.requires_grad
    plain = LLAMA.build().half()
    manytune.prepare_model_for_kbit_training(plain, use_gradient_checkpointing=False)
    assert not plain(input_ids=IDS).logits.requires_grad


@pytest.mark.parametrize("family", [LLAMA, T5, BERT], ids=str)
def test_trainers_see_what_the_base_takes_about_its_loss(family: Family) -> None:
    import inspect

    base = family.build()
    model = get_peft_model(base, LoraConfig(task_type=family.task_type))
    takes = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(base.forward).parameters.values())
    assert model.accepts_loss_kwargs == getattr(base, "accepts_loss_kwargs", takes)


def test_adapters_are_uploaded_with_their_card(monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, Any] = {}

    class Hub:
        def __init__(self, token: Any) -> None: ...

        def create_repo(self, name: str, **options: Any) -> Any:
            return type("Repository", (), {"repo_id": name})

        def upload_folder(self, *, folder_path: str, **options: Any) -> str:
            uploaded.update(options, files=sorted(p.name for p in Path(folder_path).iterdir()))
            return "done"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    model = get_peft_model(Net(), LoraConfig(target_modules=["q"]))
    assert model.push_to_hub("someone/adapter", commit_message="First") == "done"
    assert uploaded["files"] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert (uploaded["repo_id"], uploaded["commit_message"]) == ("someone/adapter", "First")
