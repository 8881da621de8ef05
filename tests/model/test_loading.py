"""The options of `from_pretrained` and `load_adapter`: HF PEFT's mean here what they mean there, or are refused."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate import dispatch_model
from tests.methods.lora.compared_with_peft import Net
from tests.methods.tiny_models import LLAMA
from tests.methods.tiny_moe import QWEN3, logits
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import manytune
from manytune import AdapterError, ConfigError, LoraConfig, PeftModel, PeftWarning

IDS = LLAMA.inputs()["input_ids"]


def output(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=IDS).logits
    return result


def saved(directory: Path, **options: Any) -> tuple[Path, Tensor]:
    """An adapter on a disk, and what it makes of `IDS`."""
    config = LoraConfig(r=2, init_lora_weights=False, **options)
    model = manytune.get_peft_model(LLAMA.build(), config).eval()
    for name, parameter in model.named_parameters():
        if "magnitude" in name or "modules_to_save" in name:
            parameter.data.mul_(1.5)
    model.save_pretrained(directory)
    return directory, output(model)


# -- names


@pytest.mark.parametrize("method", ["from_pretrained", "load_adapter", "add_adapter"])
def test_arguments_have_pefts_names_and_places(method: str) -> None:
    theirs = list(inspect.signature(getattr(peft.PeftModel, method)).parameters)
    mine = list(inspect.signature(getattr(PeftModel, method)).parameters)
    assert mine[: len(theirs)] == theirs


@pytest.mark.parametrize(
    "options",
    [
        {"device_map": "auto"},
        {"device_map": "cpu"},
        {"device_map": {"": "cpu"}},
        {"device_map": {"": torch.device("cpu")}},
        {"device_map": {"model": "cpu", "lm_head": "disk"}},
        {"torch_device": "cpu"},
        {"torch_device": torch.device("cpu")},
        {"low_cpu_mem_usage": True},
        {"autocast_adapter_dtype": False},
        {"ephemeral_gpu_offload": True},
        {"ignore_mismatched_sizes": True},
        {"key_mapping": {"^nothing": "else"}},
        {"use_safetensors": True},
        {
            "token": "x",
            "revision": "main",
            "cache_dir": "x",
            "force_download": True,
            "local_files_only": True,
        },
        {"use_auth_token": "x", "etag_timeout": 3, "library_name": "x", "user_agent": "x"},
        {"max_memory": None, "offload_folder": None, "offload_index": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_what_peft_takes_is_taken(options: dict[str, Any], dora: bool, tmp_path: Path) -> None:
    directory, expected = saved(tmp_path, use_dora=dora)
    model = PeftModel.from_pretrained(LLAMA.build(), directory, **options)
    torch.testing.assert_close(output(model), expected)
    assert model.load_adapter(directory, "again", **options).missing_keys == []
    model.set_adapter("again")
    torch.testing.assert_close(output(model), expected)
    if isinstance(options.get("torch_device"), torch.device) or (dora and "ephemeral_gpu_offload" in options):
        return  # HF PEFT takes names of devices only, and there must be a GPU to borrow
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(LLAMA.build(), str(directory), **options)
    torch.testing.assert_close(output(theirs), expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device_mpa": "auto"}, TypeError, r"'device_mpa'\. Did you mean 'device_map'\?"),
        ({"device_map": "everywhere"}, ConfigError, r"device_map='everywhere': expected a device, a mapping"),
        ({"use_safetensors": False}, ValueError, "reads safetensors only"),
        ({"proxies": {}}, TypeError, r"'proxies': huggingface_hub takes proxies from the environment"),
        ({"resume_download": True}, TypeError, "'resume_download': downloads are always resumed"),
        ({"adapters": {}}, TypeError, "'adapters': it belongs to X-LoRA"),
        ({"key_mapping": {"(": ""}}, ValueError, "key_mapping: expected regular expressions"),
        ({"key_mapping": {"a": 3}}, ValueError, "key_mapping: expected regular expressions"),
    ],
)
def test_what_means_nothing_is_refused_by_name_and_nothing_is_attached(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    directory, _ = saved(tmp_path)
    base = LLAMA.build()
    before = repr(base)
    with pytest.raises(error, match=message):
        PeftModel.from_pretrained(base, directory, **options)
    assert repr(base) == before
    model = PeftModel.from_pretrained(base, directory)
    with pytest.raises(error, match=message):
        model.load_adapter(directory, "b", **options)
    assert list(model.peft_config) == ["default"]


# -- where things go


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"device_map": {"": "meta"}}, r"device_map=\{'': 'meta'\}"),
        ({"max_memory": {"cpu": "1GB"}}, r"max_memory=\{'cpu': '1GB'\}"),
        ({"offload_folder": "somewhere"}, "offload_folder='somewhere'"),
        ({"offload_dir": "somewhere", "device_map": "auto"}, "offload_dir='somewhere'"),
    ],
)
def test_options_that_would_place_the_base_say_that_it_stays(
    options: dict[str, Any], named: str, tmp_path: Path
) -> None:
    directory, expected = saved(tmp_path)
    with pytest.warns(
        PeftWarning, match=rf"{named}: an adapter goes where its layers of the base are, on cpu"
    ):
        model = PeftModel.from_pretrained(LLAMA.build(), directory, **options)
    torch.testing.assert_close(output(model), expected)
    with pytest.warns(PeftWarning, match=named):
        model.load_adapter(directory, "b", **options)


def offloaded(directory: Path) -> Any:
    """A base whose second layer is on a disk between calls."""
    LLAMA.build().save_pretrained(directory / "base")
    parts = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    parts |= dict.fromkeys(("model.norm", "model.rotary_emb", "lm_head"), "cpu")
    return AutoModelForCausalLM.from_pretrained(
        directory / "base", device_map=parts, offload_folder=directory / "offloaded"
    )


@pytest.mark.parametrize(
    "options", [{}, {"device_map": "auto"}, {"torch_device": "cpu"}, {"low_cpu_mem_usage": True}]
)
def test_an_adapter_runs_next_to_layers_that_are_offloaded(options: dict[str, Any], tmp_path: Path) -> None:
    directory, expected = saved(tmp_path / "adapter")
    base = offloaded(tmp_path)
    assert base.model.layers[1].self_attn.q_proj.weight.is_meta
    model = PeftModel.from_pretrained(base, directory, **options)
    assert {p.device.type for n, p in model.named_parameters() if "lora_" in n} == {"cpu"}
    torch.testing.assert_close(output(model), expected)
    with pytest.raises(AdapterError, match="Can't merge into a Linear whose weights are kept elsewhere"):
        model.merge_adapter()
    with (
        pytest.raises(AdapterError, match="Can't merge into a Linear whose weights are kept elsewhere"),
        model.using("default", merged=True),
    ):
        pass
    torch.testing.assert_close(output(model), expected)


def test_an_adapter_trains_next_to_layers_that_are_offloaded(tmp_path: Path) -> None:
    """HF PEFT leaves the adapters of such layers on the meta device, where they do nothing."""
    gradients = []
    for base in (LLAMA.build(), offloaded(tmp_path)):
        torch.manual_seed(1)
        model = manytune.get_peft_model(base, LoraConfig(r=2, init_lora_weights=False))
        model(input_ids=IDS).logits.square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(*gradients)


def test_a_base_that_is_offloaded_whole_takes_an_adapter(tmp_path: Path) -> None:
    directory, expected = saved(tmp_path / "adapter")
    names = (
        "model.embed_tokens",
        "model.layers.0",
        "model.layers.1",
        "model.norm",
        "model.rotary_emb",
        "lm_head",
    )
    base = dispatch_model(
        LLAMA.build(),
        dict.fromkeys(names, "disk"),
        main_device="cpu",
        offload_dir=tmp_path / "offloaded",
        force_hooks=True,
    )
    model = PeftModel.from_pretrained(base, directory)
    torch.testing.assert_close(output(model), expected)


def test_what_needs_a_weight_that_is_offloaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="use_dora=True starts from the weight of a Linear, which is kept elsewhere"
    ):
        manytune.get_peft_model(offloaded(tmp_path), LoraConfig(use_dora=True))


def test_ephemeral_offloading_is_noted_and_changes_no_number(tmp_path: Path) -> None:
    directory, _ = saved(tmp_path, use_dora=True)
    model = PeftModel.from_pretrained(LLAMA.build(), directory, ephemeral_gpu_offload=True)
    assert model.peft_config["default"].runtime_config.ephemeral_gpu_offload is True  # type: ignore[attr-defined]
    config = manytune.IA3Config()
    manytune.get_peft_model(LLAMA.build(), config).save_pretrained(tmp_path / "ia3")
    with pytest.warns(PeftWarning, match="ephemeral_gpu_offload=True has no effect: IA3"):
        PeftModel.from_pretrained(LLAMA.build(), tmp_path / "ia3", ephemeral_gpu_offload=True)


def test_ephemeral_offloading_borrows_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is asked for only if it is wanted."""
    from manytune.methods.lora import layer
    from manytune.methods.lora.config import LoraRuntimeConfig

    asked: list[bool] = []

    def lent(check_available: bool = False) -> torch.device:
        asked.append(check_available)
        return torch.device("cpu")

    monkeypatch.setattr(layer.torch.accelerator, "current_accelerator", lent)
    for offload in (False, True):
        runtime = LoraRuntimeConfig(ephemeral_gpu_offload=offload)
        manytune.get_peft_model(
            Net(), LoraConfig(target_modules=["q"], use_dora=True, runtime_config=runtime)
        )
        assert bool(asked) == offload


# -- names from an older base


class Old(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"attn": nn.Linear(3, 3)})


class New(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleDict({"attention": nn.Linear(3, 3)})


def test_key_mapping_renames_what_a_file_calls_otherwise(tmp_path: Path) -> None:
    old = manytune.get_peft_model(Old(), LoraConfig(target_modules=["attn"], init_lora_weights=False))
    old.save_pretrained(tmp_path)
    config = LoraConfig(target_modules=["attention"])
    mapping = {r"^block\.attn": "layer.attention", "block": "never"}
    model = PeftModel.from_pretrained(New(), tmp_path, config=config, key_mapping=mapping)
    expected = manytune.get_peft_model_state_dict(old)
    found = manytune.get_peft_model_state_dict(model)
    torch.testing.assert_close(list(found.values()), list(expected.values()))
    assert model.load_adapter(tmp_path, "default", key_mapping=mapping).missing_keys == []
    with pytest.raises(
        manytune.CheckpointError, match=r"fit nothing in the model: base_model\.model\.block\.attn"
    ):
        model.load_adapter(tmp_path, "default")


def test_names_that_transformers_changed_are_brought_up_to_date_by_its_own_rules() -> None:
    """Mixtral's blocks were called `block_sparse_moe`; what has today's names stays as it is."""
    from tests.methods.tiny_moe import MIXTRAL

    model = manytune.get_peft_model(
        MIXTRAL.build(), LoraConfig(target_modules=["q_proj"], target_parameters=["gate.weight"])
    )
    tensors = manytune.get_peft_model_state_dict(model)
    older = {
        key.replace(".mlp.", ".block_sparse_moe."): torch.full_like(t, 0.5) for key, t in tensors.items()
    }
    assert older.keys() != tensors.keys()
    result = manytune.set_peft_model_state_dict(model, older)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert all(
        torch.equal(t, torch.full_like(t, 0.5)) for t in manytune.get_peft_model_state_dict(model).values()
    )


# -- training on


def test_an_adapter_of_experts_trains_after_loading_too(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=[], target_parameters=["experts.down_proj"])
    model = manytune.get_peft_model(QWEN3.build(), config)
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "second", is_trainable=True)
    model.set_adapter("second")
    logits(model).square().sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if ".second." in n)


@pytest.mark.parametrize(
    "config",
    [
        manytune.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        manytune.SelectiveConfig(parameters=["q_proj"]),
        manytune.VeraConfig(r=2),
    ],
    ids=lambda config: type(config).__name__,
)
def test_other_methods_load_for_training_too(config: Any, tmp_path: Path) -> None:
    manytune.get_peft_model(LLAMA.build(), config).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(LLAMA.build(), tmp_path)
    model.load_adapter(tmp_path, "second", is_trainable=True)
    model.set_adapter("second")
    assert any(parameter.requires_grad for parameter in model.parameters())
