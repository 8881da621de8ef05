"""Adapters on disk: the same files as the installed HF PEFT's, read by either, and refused when they don't fit."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import yaml
from tests.methods.lora.compared_with_peft import BY_NAME, CASES, Case, Net, quiet, run, scatter
from tests.methods.tiny_models import LLAMA
from torch import nn

import manytune
from manytune import (
    AutoPeftModelForCausalLM,
    CheckpointError,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftWarning,
    get_peft_model,
)

TENSORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def as_sets(path: Path) -> dict[str, Any]:
    """A configuration file; lists without an order of their own as sets."""
    options: dict[str, Any] = json.loads(path.read_text())
    return {key: frozenset(value) if isinstance(value, list) else value for key, value in options.items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_files_are_pefts_to_the_byte(case: Case, tmp_path: Path) -> None:
    for directory, model in zip(("mine", "theirs"), case.both(torch.float32), strict=True):
        scatter(model)
        with quiet():
            model.save_pretrained(tmp_path / directory)
    assert (tmp_path / "mine" / TENSORS).read_bytes() == (tmp_path / "theirs" / TENSORS).read_bytes()
    mine, theirs = as_sets(tmp_path / "mine" / CONFIG), as_sets(tmp_path / "theirs" / CONFIG)
    if case.options.get("target_modules") == "all-linear":
        # The same modules, by shorter names.
        mine.pop("target_modules"), theirs.pop("target_modules")
    assert mine == theirs
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["README.md", CONFIG, TENSORS]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_peft_saved_loads_here_with_equal_outputs(case: Case, tmp_path: Path) -> None:
    theirs = case.attach(peft, case.base())
    scatter(theirs)
    with quiet():
        theirs.save_pretrained(tmp_path)
    mine = PeftModel.from_pretrained(case.base(), tmp_path)
    torch.testing.assert_close(run(mine), run(theirs.eval()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_saved_here_loads_in_peft_and_here_with_equal_outputs(case: Case, tmp_path: Path) -> None:
    mine = case.attach(manytune, case.base())
    scatter(mine)
    with quiet():
        mine.save_pretrained(tmp_path)
        theirs = peft.PeftModel.from_pretrained(case.base(), tmp_path)
    torch.testing.assert_close(run(theirs), run(mine.eval()), rtol=1e-12, atol=1e-12)
    assert torch.equal(run(PeftModel.from_pretrained(case.base(), tmp_path)), run(mine))


@pytest.mark.parametrize("name", ["net-layers-pattern", "llama-default"])
@pytest.mark.parametrize("selected", [None, ["second"], ["default", "third"]])
def test_several_adapters_are_saved_where_peft_saves_them(
    name: str, selected: list[str] | None, tmp_path: Path
) -> None:
    case = BY_NAME[name]
    for directory, library, model in zip(
        ("mine", "theirs"), (manytune, peft), case.both(torch.float32), strict=True
    ):
        for seed, other in enumerate(("second", "third")):
            torch.manual_seed(seed)
            with quiet():
                model.add_adapter(
                    other, library.LoraConfig(**case.options, r=2 + seed, init_lora_weights=False)
                )
        model.save_pretrained(tmp_path / directory, selected_adapters=selected)

    def files(directory: str) -> dict[str, bytes]:
        found = (tmp_path / directory).rglob(TENSORS)
        return {str(p.relative_to(tmp_path / directory)): p.read_bytes() for p in found}

    assert files("mine") == files("theirs")
    for path in (tmp_path / "mine").rglob(CONFIG):
        assert as_sets(path) == as_sets(tmp_path / "theirs" / path.relative_to(tmp_path / "mine"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """An adapter of `Net` on disk."""
    model = get_peft_model(Net(), LoraConfig(target_modules=["q", "c1"], modules_to_save=["head"]))
    scatter(model)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change_tensors(directory: Path, **changes: Any) -> None:
    """Add, replace or (with None) remove tensors; `.` in names written as `__`."""
    tensors = safetensors.torch.load_file(directory / TENSORS)
    for name, value in changes.items():
        key = f"base_model.model.{name.replace('__', '.')}"
        tensors = {k: v for k, v in tensors.items() if k != key} | ({} if value is None else {key: value})
    safetensors.torch.save_file(tensors, directory / TENSORS, metadata={"format": "pt"})


def change_config(directory: Path, **changes: Any) -> None:
    """Set or (with ...) remove options in the file."""
    options = json.loads((directory / CONFIG).read_text()) | changes
    (directory / CONFIG).write_text(json.dumps({k: v for k, v in options.items() if v is not ...}))


def refuse(directory: Path, message: str, error: type[Exception] = CheckpointError, **options: Any) -> None:
    """Loading is refused, and leaves a base, and a model with another adapter, exactly as they were."""
    base = Net()
    base.c1.weight.requires_grad_(False)
    before = repr(base), [(n, p.requires_grad, id(p)) for n, p in base.named_parameters()]
    with pytest.raises(error, match=message):
        PeftModel.from_pretrained(base, directory, **options)
    assert (repr(base), [(n, p.requires_grad, id(p)) for n, p in base.named_parameters()]) == before
    model = get_peft_model(Net(), LoraConfig(target_modules=["q", "c1"], modules_to_save=["head"]))
    held = repr(model), list(model.state_dict()), run(model)
    with pytest.raises(error, match=message):
        model.load_adapter(directory, "second", **options)
    assert (repr(model), list(model.state_dict())) == held[:2]
    assert torch.equal(run(model), held[2])
    assert list(model.peft_config) == ["default"]


def test_a_pickle_is_refused_with_the_way_to_convert_it(saved: Path) -> None:
    tensors = safetensors.torch.load_file(saved / TENSORS)
    (saved / TENSORS).unlink()
    torch.save(tensors, saved / "adapter_model.bin")
    refuse(saved, r"adapter_model\.bin: manytune reads safetensors only.*save_file.*weights_only=True")
    # The message's own words convert it.
    loaded = torch.load(saved / "adapter_model.bin", weights_only=True)
    safetensors.torch.save_file(loaded, saved / TENSORS)
    PeftModel.from_pretrained(Net(), saved)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "bare"])
def test_a_pickle_under_safetensors_name_is_refused_by_content(saved: Path, new_format: bool) -> None:
    torch.save({"x": torch.zeros(1)}, saved / TENSORS, _use_new_zipfile_serialization=new_format)
    refuse(saved, "expected safetensors, found a pickle under that name.*can run code")


@pytest.mark.parametrize("keep", [0, 5, 100, -3])
def test_a_truncated_file_is_refused(saved: Path, keep: int) -> None:
    (saved / TENSORS).write_bytes((saved / TENSORS).read_bytes()[:keep])
    refuse(saved, rf"{TENSORS}: not a readable safetensors file")


def test_a_tensor_left_over_is_refused(saved: Path) -> None:
    change_tensors(saved, layers__0__v__lora_A__weight=torch.zeros(8, 6))
    refuse(
        saved,
        r"1 tensors fit nothing in the model: base_model\.model\.layers\.0\.v\.lora_A\.weight\. Was the",
    )


def test_a_tensor_of_another_naming_is_refused(saved: Path) -> None:
    tensors = safetensors.torch.load_file(saved / TENSORS) | {"elsewhere.weight": torch.zeros(1)}
    safetensors.torch.save_file(tensors, saved / TENSORS)
    refuse(saved, r"1 tensors fit nothing in the model: elsewhere\.weight")


def test_missing_tensors_warn_once_with_their_names_in_the_model(saved: Path) -> None:
    change_tensors(saved, layers__0__q__lora_A__weight=None, head__bias=None)
    with pytest.warns(UserWarning) as record:
        model = PeftModel.from_pretrained(Net(), saved, "mine")
    names = [
        "base_model.model.layers.0.q.lora_A.mine.weight",
        "base_model.model.head.modules_to_save.mine.bias",
    ]
    (message,) = [str(w.message) for w in record]
    assert "Found missing adapter keys while loading the checkpoint" in message
    assert all(name in message for name in names)
    assert set(names) <= set(dict(model.named_parameters()))
    with pytest.warns(UserWarning, match="Found missing adapter keys"):
        result = model.load_adapter(saved, "second")
    assert sorted(result.missing_keys) == sorted(name.replace(".mine", ".second") for name in names)
    assert result.unexpected_keys == []


def test_a_complete_checkpoint_reports_no_missing_keys(saved: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = PeftModel.from_pretrained(Net(), saved).load_adapter(saved, "second")
    assert (result.missing_keys, result.unexpected_keys) == ([], [])


def test_a_shape_that_does_not_fit_is_refused_with_both_sizes(saved: Path) -> None:
    change_tensors(saved, c1__lora_A__weight=torch.zeros(8, 7))
    refuse(
        saved,
        r"size mismatch for c1\.lora_A\.weight: the checkpoint has \(8, 7\), the model \(8, 6\)",
        RuntimeError,
    )
    with pytest.warns(PeftWarning, match="missing|size"):
        model = PeftModel.from_pretrained(Net(), saved, ignore_mismatched_sizes=True)
    assert model.c1.lora_A["default"].weight.shape == (8, 6)


def test_a_base_of_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    get_peft_model(LLAMA.build(), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    other = type(LLAMA.build())(
        LLAMA.build().config.__class__(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    )
    with pytest.raises(CheckpointError, match=r"the checkpoint has \(8, 32\), the model \(8, 16\)"):
        PeftModel.from_pretrained(other, tmp_path)
    assert not any("lora" in name for name, _ in other.named_modules())


def test_an_adapter_of_another_task_is_refused(tmp_path: Path) -> None:
    LoraConfig(task_type="SEQ_CLS", base_model_name_or_path="x").save_pretrained(tmp_path)
    message = "Expected target PEFT class: PeftModel.*, but you have asked for: AutoPeftModelForCausalLM"
    with pytest.raises(ValueError, match=message):
        AutoPeftModelForCausalLM.from_pretrained(tmp_path)


def test_an_adapter_that_names_no_base_is_refused_by_the_auto_class(tmp_path: Path) -> None:
    LoraConfig(task_type="CAUSAL_LM").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"names no base model\. Load the base yourself"):
        AutoPeftModelForCausalLM.from_pretrained(tmp_path)


def test_the_auto_class_loads_base_and_adapter(tmp_path: Path) -> None:
    base = LLAMA.build()
    base.save_pretrained(tmp_path / "base")
    loaded = type(base).from_pretrained(tmp_path / "base")
    model = get_peft_model(loaded, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False))
    assert model.peft_config["default"].base_model_name_or_path == str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    assert torch.equal(run(again), run(model.eval()))
    with quiet():
        theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    torch.testing.assert_close(run(theirs), run(again))


def test_unknown_options_in_the_file_warn_once_with_their_names(saved: Path) -> None:
    change_config(saved, zebra=1, aardvark=None)
    with pytest.warns(UserWarning) as record:
        PeftModel.from_pretrained(Net(), saved)
    (message,) = [str(w.message) for w in record]
    assert (
        "Unexpected keyword arguments ['aardvark', 'zebra'] for class LoraConfig, these are ignored."
        in message
    )


def test_a_file_without_a_method_is_a_type_error(saved: Path) -> None:
    change_config(saved, peft_type=...)
    refuse(saved, "no `peft_type`", TypeError)


def test_a_file_of_an_unknown_method_is_refused(saved: Path) -> None:
    (saved / CONFIG).write_text(json.dumps({"peft_type": "SORCERY"}))
    assert PeftConfig.from_pretrained(saved).peft_type == "SORCERY"
    refuse(
        saved,
        r"peft_type='SORCERY'\. Known: .*LORA|different peft types\. Found LORA and SORCERY",
        ValueError,
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected a JSON object with the adapter's options"),
        ("[1]", "expected a JSON object, found list"),
        ("", "expected a JSON object"),
        ("[" * 100_000, "expected a JSON object"),
    ],
)
def test_a_broken_configuration_file_is_refused(saved: Path, content: str, message: str) -> None:
    (saved / CONFIG).write_text(content)
    refuse(saved, f"{CONFIG}: {message}")


def test_an_option_that_is_not_implemented_is_refused_by_name(saved: Path) -> None:
    change_config(saved, layer_replication=[[0, 2]])
    refuse(saved, "layer_replication=.*doesn't implement this option", ValueError)


def test_a_missing_directory_or_file_is_named(tmp_path: Path) -> None:
    refuse(tmp_path, rf"Can't find '{CONFIG}' at '{re.escape(str(tmp_path))}'. The directory holds: nothing")
    refuse(tmp_path / "nowhere", f"Can't find '{CONFIG}' at .*neither a directory here nor")
    LoraConfig(target_modules=["q"]).save_pretrained(tmp_path)
    refuse(tmp_path, f"Can't find '{TENSORS}' at .*The directory holds: {CONFIG}")


def test_an_unknown_loading_option_is_refused(saved: Path) -> None:
    refuse(saved, r"Unknown options for loading an adapter: 'key_maping'", TypeError, key_maping={})


def test_pickle_is_not_written(tmp_path: Path) -> None:
    model = get_peft_model(Net(), LoraConfig(target_modules=["q"]))
    with pytest.raises(CheckpointError, match="safetensors only"):
        model.save_pretrained(tmp_path / "new", safe_serialization=False)
    assert not (tmp_path / "new").exists()


def test_saving_over_a_file_or_an_unknown_adapter_is_refused(tmp_path: Path) -> None:
    model = get_peft_model(Net(), LoraConfig(target_modules=["q"]))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="should be a directory, not a file"):
        model.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(
        ValueError, match=r"Can't save \['nobody'\]: not loaded. Loaded adapters: \['default'\]"
    ):
        model.save_pretrained(tmp_path, selected_adapters=["default", "nobody"])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_saving_changes_nothing_in_memory(tmp_path: Path) -> None:
    model = get_peft_model(Net(), LoraConfig(target_modules=["q"]))
    before = model.peft_config["default"].to_dict()
    model.save_pretrained(tmp_path)
    assert model.peft_config["default"].to_dict() == before
    assert model.peft_config["default"].inference_mode is False
    assert json.loads((tmp_path / CONFIG).read_text())["inference_mode"] is True


def test_tables_that_a_checkpoint_brought_along_are_the_bases_again_after_detaching(tmp_path: Path) -> None:
    model = get_peft_model(LLAMA.build(), LoraConfig(target_modules=["q_proj"]))
    model.get_input_embeddings().weight.data.add_(1.0)
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    base: Any = LLAMA.build()
    table = base.get_input_embeddings().weight
    before = table.detach().clone()
    loaded = PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(table, before + 1.0)
    loaded.load_adapter(tmp_path, "again")
    assert loaded.unload() is base
    assert torch.equal(table, before)


def test_names_that_contain_each_other_do_not_mix(tmp_path: Path) -> None:
    model = get_peft_model(Net(), LoraConfig(target_modules=["q"], init_lora_weights=False), "b")
    for name in ("bb", "weight", "base_layer", "q"):
        model.add_adapter(name, LoraConfig(target_modules=["q"], init_lora_weights=False))
    model.save_pretrained(tmp_path)
    for name in ("b", "bb", "weight", "base_layer", "q"):
        tensors = safetensors.torch.load_file(tmp_path / name / TENSORS)
        assert set(tensors) == {
            f"base_model.model.layers.{i}.q.lora_{part}.weight" for i in (0, 1) for part in "AB"
        }
        layer: Any = model.get_submodule("base_model.model.layers.0.q")
        assert torch.equal(tensors["base_model.model.layers.0.q.lora_A.weight"], layer.lora_A[name].weight)


def test_low_memory_loading_gives_the_same_model(saved: Path) -> None:
    usual = PeftModel.from_pretrained(Net(), saved)
    model = PeftModel.from_pretrained(Net(), saved, low_cpu_mem_usage=True)
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(run(model), run(usual))
    model.load_adapter(saved, "second", low_cpu_mem_usage=True)
    model.set_adapter("second")
    assert torch.equal(run(model), run(usual))
    change_tensors(saved, layers__0__q__lora_A__weight=None)
    refuse(saved, "With low_cpu_mem_usage=True nothing else gives them values", low_cpu_mem_usage=True)


def test_loaded_for_inference_nothing_trains_and_dropout_is_off(tmp_path: Path) -> None:
    case = BY_NAME["net-dropout"]
    model = case.attach(manytune, Net())
    scatter(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Net().train(), tmp_path)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not any(m.training for m in loaded.modules())
    assert torch.equal(run(loaded), run(loaded))
    assert loaded.peft_config["default"].inference_mode is True
    trainable = PeftModel.from_pretrained(Net().train(), tmp_path, is_trainable=True)
    assert {n for n, p in trainable.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    assert trainable.training and trainable.peft_config["default"].inference_mode is False


def test_a_given_configuration_is_used_and_kept(saved: Path) -> None:
    config = LoraConfig(target_modules=["q", "c1"], modules_to_save=["head"], lora_alpha=80)
    model = PeftModel.from_pretrained(Net(), saved, config=config)
    assert model.peft_config["default"] is config
    layer: Any = model.get_submodule("base_model.model.c1")
    assert layer.scaling["default"] == 10


def test_an_adapter_in_a_folder_of_a_directory_loads(saved: Path) -> None:
    model = PeftModel.from_pretrained(Net(), saved.parent, subfolder="adapter")
    assert torch.equal(run(model), run(PeftModel.from_pretrained(Net(), saved)))


def test_no_half_file_is_left_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = get_peft_model(Net(), LoraConfig(target_modules=["q"]))
    model.save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    scatter(model)
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_base_modules_own_lora_names_are_not_saved(tmp_path: Path) -> None:
    base = Net()
    base.my_lora_A = nn.Linear(1, 1)
    get_peft_model(base, LoraConfig(target_modules=["q"])).save_pretrained(tmp_path)
    assert not [key for key in safetensors.torch.load_file(tmp_path / TENSORS) if "my_lora" in key]


def card_of(directory: Path) -> tuple[dict[str, Any], str]:
    _, head, text = (directory / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_new_card_says_what_pefts_says_and_more_than_a_thousand_characters(tmp_path: Path) -> None:
    for library in (manytune, peft):
        base = LLAMA.build()
        base.name_or_path = base.config._name_or_path = "someone/base"
        with quiet():
            model = library.get_peft_model(base, library.LoraConfig(task_type="CAUSAL_LM"))
            model.save_pretrained(tmp_path / library.__name__)
    mine, text = card_of(tmp_path / "manytune")
    theirs, _ = card_of(tmp_path / "peft")
    assert mine == theirs
    assert len(text) > 1000


def test_a_card_that_is_there_keeps_its_text_and_metadata(tmp_path: Path) -> None:
    model = get_peft_model(LLAMA.build(), LoraConfig(task_type="CAUSAL_LM"))
    (tmp_path / "README.md").write_text("---\nlicense: mit\ntags:\n- mine\n---\nMy words.\n")
    model.save_pretrained(tmp_path)
    data, text = card_of(tmp_path)
    assert text == "My words.\n"
    assert data == {
        "license": "mit",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "mine", "transformers"],
    }


def test_a_card_whose_metadata_cannot_be_read_is_an_error_and_stays(tmp_path: Path) -> None:
    model = get_peft_model(LLAMA.build(), LoraConfig())
    (tmp_path / "README.md").write_text("---\n- a list\n---\nMy words.\n")
    with pytest.raises(CheckpointError, match=r"README.md: expected metadata as YAML keys and values"):
        model.save_pretrained(tmp_path)
    assert "My words" in (tmp_path / "README.md").read_text()
