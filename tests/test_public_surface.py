"""What `import manytune` promises: these names, and nothing heavy until one of them is used."""

import json
import subprocess
import sys

import pytest

import manytune

ERRORS = {
    "AdapterError",
    "BaseMismatchError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DataWarning",
    "ManytuneError",
    "NoMatchingPeftModuleError",
    "PeftError",
    "PeftWarning",
    "RecipeError",
    "RunError",
    "StoreError",
    "TemplateError",
}
METHODS = {
    "AdaLoraConfig",
    "AdapterCheckpoints",
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
    "BottleneckConfig",
    "CombinedConfig",
    "FullConfig",
    "IA3Config",
    "LoraConfig",
    "LoraRuntimeConfig",
    "PeftConfig",
    "PeftMixedModel",
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
    "PeftType",
    "PrefixTuningConfig",
    "PromptEncoderConfig",
    "PromptEncoderReparameterizationType",
    "PromptLearningConfig",
    "PromptTuningConfig",
    "PromptTuningInit",
    "SelectiveConfig",
    "TaskType",
    "TrainableTokensConfig",
    "VeraConfig",
    "get_layer_status",
    "get_model_status",
    "get_peft_model",
    "get_peft_model_state_dict",
    "inject_adapter_in_model",
    "lora_plus_groups",
    "prepare_model_for_kbit_training",
    "set_peft_model_state_dict",
}
OTHERS = {"float32_activations", "load_base"}
HEAVY = [
    "torch",
    "transformers",
    "datasets",
    "pandas",
    "scipy",
    "matplotlib",
    "rouge_score",
    "fastapi",
    "typer",
]


def test_the_public_names_are_these() -> None:
    assert set(manytune.__all__) == ERRORS | METHODS | OTHERS


def test_the_public_names_are_sorted_and_named_once() -> None:
    assert manytune.__all__ == sorted(set(manytune.__all__))


@pytest.mark.parametrize("name", manytune.__all__)
def test_each_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(manytune, name).__doc__
    assert name in dir(manytune)


def test_an_unknown_name_is_an_attribute_error_like_in_any_module() -> None:
    with pytest.raises(AttributeError, match="module 'manytune' has no attribute 'LoraConfg'"):
        _ = manytune.LoraConfg  # type: ignore[attr-defined]


def modules_after(statement: str) -> set[str]:
    script = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(ran.stdout))


def test_importing_manytune_loads_no_large_library() -> None:
    assert not modules_after("import manytune") & set(HEAVY)
