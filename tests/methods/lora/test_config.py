"""LoRA's options: what they hold, how they are written, which are refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import peft
import pytest
from tests.methods.lora.compared_with_peft import Net

from manytune import ConfigError, LoraConfig, PeftConfig, PeftType, TaskType, get_peft_model
from manytune.methods.registry import peft_config_from

#: Options that HF PEFT doesn't have.
OURS = {"freeze_a"}


def test_the_fields_and_their_defaults_are_pefts() -> None:
    mine, theirs = LoraConfig().to_dict(), peft.LoraConfig().to_dict()
    theirs["runtime_config"] = mine["runtime_config"]
    assert {name: value for name, value in mine.items() if name not in OURS} == theirs
    assert mine["runtime_config"].ephemeral_gpu_offload is False


def test_lists_of_modules_become_sets_and_are_written_as_lists(tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["v", "q", "q"], exclude_modules=["k"])
    assert (config.target_modules, config.exclude_modules) == ({"q", "v"}, {"k"})
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["target_modules"], written["exclude_modules"]) == (["q", "v"], ["k"])
    assert (written["peft_type"], written["task_type"]) == ("LORA", None)
    assert "runtime_config" not in written


def test_what_names_no_modules_is_refused() -> None:
    with pytest.raises(ConfigError, match="list of module names, or a pattern; found 5"):
        LoraConfig(target_modules=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [LoraConfig, PeftConfig])
def test_the_round_trip_is_exact(kind: type[PeftConfig], tmp_path: Path) -> None:
    config = LoraConfig(
        r=3, target_modules=["q"], lora_alpha=5, lora_dropout=0.25, bias="lora_only", use_rslora=True,
        modules_to_save=["head"], layers_to_transform=0, layers_pattern=["h"], rank_pattern={"^q": 4},
        alpha_pattern={"v": 2.5}, task_type="CAUSAL_LM", revision="main",
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    assert type(again) is LoraConfig
    assert again == config
    assert PeftConfig.from_json_file(tmp_path / "adapter_config.json")["r"] == 3
    theirs = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert {k: v for k, v in theirs.to_dict().items() if k != "runtime_config"} == {
        k: v for k, v in config.to_dict().items() if k not in {"runtime_config", *OURS}
    }


def test_a_runtime_option_in_a_file_is_ignored(tmp_path: Path) -> None:
    LoraConfig().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"runtime_config": {"ephemeral_gpu_offload": True}})
    )
    again = LoraConfig.from_pretrained(tmp_path)
    assert isinstance(again, LoraConfig)
    assert again.runtime_config.ephemeral_gpu_offload is False


def test_a_configuration_can_be_copied_replaced_pickled_and_changed() -> None:
    config = LoraConfig(r=2, target_modules=["q"])
    for twin in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config
        assert type(twin) is LoraConfig
    assert dataclasses.replace(config, r=5).r == 5
    config.r = 9
    assert get_peft_model(Net(), config).layers[0].q.r == {"default": 9}


def test_types_are_equal_to_plain_strings() -> None:
    assert PeftType.LORA == "LORA"
    assert TaskType.CAUSAL_LM == "CAUSAL_LM"
    assert LoraConfig(task_type=TaskType.SEQ_CLS).task_type == "SEQ_CLS"


UNIMPLEMENTED: dict[str, Any] = {
    "alora_invocation_tokens": [1],
    "arrow_config": {"top_k": 1},
    "corda_config": {"a": 1},
    "ensure_weight_tying": True,
    "eva_config": {"rho": 2.0},
    "kasa_config": {"a": 1},
    "layer_replication": [(0, 1)],
    "loftq_config": {"loftq_bits": 4},
    "lora_ga_config": {"a": 1},
    "megatron_config": {"a": 1},
    "megatron_core": "other.core",
    "monteclora_config": {"a": 1},
    "qalora_group_size": 8,
    "use_bdlora": {"a": 1},
    "use_qalora": True,
    "velora_config": {"a": 1},
}


@pytest.mark.parametrize("option", UNIMPLEMENTED)
def test_an_option_that_is_not_implemented_is_refused_by_name(option: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"LoraConfig\({option}=.*manytune doesn't implement this option of HF PEFT"
    ):
        LoraConfig(**{option: UNIMPLEMENTED[option]})
    assert getattr(LoraConfig(**{option: getattr(LoraConfig(), option)}), option) == getattr(
        LoraConfig(), option
    )


def test_every_option_is_either_implemented_or_refused() -> None:
    implemented = {
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out",
        "bias", "use_rslora", "use_dora", "modules_to_save", "init_lora_weights", "layers_to_transform",
        "trainable_token_indices",
        "layers_pattern", "rank_pattern", "alpha_pattern", "target_parameters", "lora_bias", "runtime_config",
    }  # fmt: skip
    assert {f.name for f in dataclasses.fields(LoraConfig)} == implemented | set(UNIMPLEMENTED) | OURS


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task_type": "POETRY"}, ValueError, "Invalid task type: 'POETRY'. Must be one of the following task types"),
        ({"r": 0}, ValueError, "`r` should be a positive integer value but the value passed is 0"),
        ({"r": -1}, ValueError, "`r` should be a positive integer"),
        ({"r": 2.0}, ValueError, "`r` should be a positive integer"),
        ({"r": True}, ValueError, "`r` should be a positive integer"),
        ({"rank_pattern": {"q": 0}}, ValueError, r"`rank_pattern\['q'\]` should be a positive integer"),
        ({"lora_dropout": 1.0}, ValueError, "`lora_dropout` is a probability below 1, found 1.0"),
        ({"lora_dropout": -0.1}, ValueError, "`lora_dropout` is a probability"),
        ({"bias": "some"}, NotImplementedError, "bias must be 'none', 'all' or 'lora_only', found 'some'"),
        ({"init_lora_weights": "zeros"}, ValueError, "init_lora_weights='zeros'.*expected True, False, 'gaussian'"),
        ({"lora_bias": True, "init_lora_weights": "gaussian"}, ValueError, "lora_bias=True goes with"),
        ({"target_parameters": "w"}, TypeError, "must be a list of strings"),
    ],
)  # fmt: skip
def test_an_unusable_value_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LoraConfig(**options)


def test_a_recipes_words_make_a_configuration_or_name_the_nearest() -> None:
    config = peft_config_from("lora", r=4, target_modules="all-linear")
    assert config == LoraConfig(r=4, target_modules="all-linear")
    with pytest.raises(
        ConfigError, match=r"Unknown method 'lroa'\. Did you mean 'lora'\? Known methods: adalora, bottle"
    ):
        peft_config_from("lroa")
    with pytest.raises(
        ConfigError, match=r"Method 'lora' has no option 'lora_alhpa'\. Did you mean 'lora_alpha'\?"
    ):
        peft_config_from("lora", lora_alhpa=3)


def test_an_initialisation_is_known_in_any_case() -> None:
    for spelling in ("gaussian", "Gaussian", "GAUSSIAN"):
        model = get_peft_model(Net(), LoraConfig(target_modules=["q"], init_lora_weights=spelling, r=100))
        # 600 draws from N(0, 1/r²): the spread is within five of its own standard errors, r⁻¹ / √1200.
        spread = float(model.layers[0].q.lora_A["default"].weight.detach().std())
        assert spread == pytest.approx(0.01, abs=5 * 0.01 / 1200**0.5)
