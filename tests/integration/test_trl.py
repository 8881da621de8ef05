"""TRL's trainers take a manytune model, and give the losses that HF PEFT's model gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tests.integration.trainer_runs import base, lora, rows
from tests.random_cases import some
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast

import manytune

trl = pytest.importorskip("trl", reason="TRL isn't installed; the extra `trl` brings it")

# TRL uses names that transformers 5.23 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

#: By trainer: the columns of its rows, and options of its own.
TRAINERS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "SFT": (("prompt", "completion"), {}),
    "DPO": (("prompt", "chosen", "rejected"), {}),
    "KTO": (("prompt", "completion", "label"), {}),
    "Reward": (("chosen", "rejected"), {}),
    "GRPO": (("prompt",), {"num_generations": 4, "max_completion_length": 4, "beta": 0.1}),
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{f"w{number}": number for number in range(3, 32)}}
    found = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=found, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def texts() -> Dataset:
    """Every column that a trainer asks for."""
    found = []
    for number, row in enumerate(rows()[:32]):
        words = [f"w{token}" for token in row["input_ids"]]
        prompt, first, second = " ".join(words[:3]), " ".join(words[3:]), " ".join(words[2:4])
        found.append(
            {
                "prompt": prompt,
                "completion": f" {first}",
                "chosen": f" {first}",
                "rejected": f" {second}",
                "label": number % 2 == 0,
            }
        )
    return Dataset.from_list(found)


def distinct_words(completions: list[str], **_: Any) -> list[float]:
    return [float(len(set(completion.split()))) for completion in completions]


def base_for(name: str) -> Any:
    if name != "Reward":
        return base()
    config = base().config
    config.num_labels = 1
    torch.manual_seed(0)
    return LlamaForSequenceClassification(config)


def trainer_of(name: str, model: Any, directory: Path, **options: Any) -> Any:
    columns, own = TRAINERS[name]
    arguments = getattr(trl, f"{name}Config")(
        str(directory),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=3,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        **own,
    )
    more = {"reward_funcs": distinct_words} if name == "GRPO" else {}
    return getattr(trl, f"{name}Trainer")(
        model,
        args=arguments,
        train_dataset=texts().select_columns(list(columns)),
        processing_class=tokenizer(),
        **more,
        **options,
    )


def adapted(library: Any, name: str, config: Any) -> Any:
    model = base_for(name)
    torch.manual_seed(7)
    return library.get_peft_model(model, config)


def config_for(library: Any, name: str) -> Any:
    config = lora(library)
    config.task_type = "SEQ_CLS" if name == "Reward" else "CAUSAL_LM"
    return config


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_gives_hf_pefts_losses_and_adapter(name: str, tmp_path: Path) -> None:
    found, checkpoints = {}, {}
    for library in (peft, manytune):
        directory = tmp_path / library.__name__
        model = adapted(library, name, config_for(library, name))
        found[library] = losses(trainer_of(name, model, directory))
        assert not list(directory.rglob("model.safetensors"))
        checkpoints[library] = load_file(directory / "checkpoint-3" / "adapter_model.safetensors")
    assert len(set(found[peft])) == 3
    assert found[manytune] == pytest.approx(found[peft], abs=1e-5)
    assert checkpoints[manytune].keys() == checkpoints[peft].keys()
    for key, tensor in checkpoints[peft].items():
        torch.testing.assert_close(checkpoints[manytune][key], tensor, atol=1e-4, rtol=1e-4)


def prompt_tuning(library: Any) -> Any:
    return library.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)


def ia3(library: Any) -> Any:
    return library.IA3Config(task_type="CAUSAL_LM", target_modules=["v_proj"], feedforward_modules=[])


def with_head(library: Any) -> Any:
    return library.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"])


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # HF PEFT
@pytest.mark.parametrize(
    ("name", "method"),
    some(
        [(name, method) for name in ("SFT", "DPO") for method in (prompt_tuning, ia3, with_head)],
        ("SFT", prompt_tuning),
        ("DPO", ia3),
        ("SFT", with_head),
    ),
)
def test_so_does_every_kind_of_method(name: str, method: Any, tmp_path: Path) -> None:
    expected, found = (
        losses(trainer_of(name, adapted(library, name, method(library)), tmp_path / library.__name__))
        for library in (peft, manytune)
    )
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["SFT", "DPO", "KTO", "GRPO"])
def test_an_adapter_in_the_output_embeddings_is_refused_rather_than_left_untrained(
    name: str, tmp_path: Path
) -> None:
    config = manytune.LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"])
    model = manytune.get_peft_model(base(), config)
    with pytest.raises(ValueError, match="lm_head"):
        trainer_of(name, model, tmp_path)


def test_dpo_continues_from_a_trained_adapter_and_compares_with_its_start(tmp_path: Path) -> None:
    """TRL copies the adapter into a second one, `ref`; at the start both answer alike, so the loss is log 2."""
    config = config_for(manytune, "DPO")
    config.init_lora_weights = False
    trainer = trainer_of("DPO", adapted(manytune, "DPO", config), tmp_path)
    found = losses(trainer)
    assert found[0] == pytest.approx(0.693147, abs=1e-5)
    assert trainer.model.active_adapters == ["default"]
    tensors = manytune.get_peft_model_state_dict(trainer.model)
    start = manytune.get_peft_model_state_dict(trainer.model, adapter_name="ref")
    assert not all(torch.equal(tensors[key], start[key]) for key in tensors)


def test_training_resumes_from_a_checkpoint(tmp_path: Path) -> None:
    trainer = trainer_of("SFT", adapted(manytune, "SFT", config_for(manytune, "SFT")), tmp_path)
    trainer.train()
    again = trainer_of("SFT", adapted(manytune, "SFT", config_for(manytune, "SFT")), tmp_path)
    again.args.max_steps = 4
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert [entry["step"] for entry in again.state.log_history if "loss" in entry] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["SFT", "DPO"])
def test_a_configuration_alone_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """TRL would build HF PEFT's model from it."""
    with pytest.raises(TypeError, match="peft_config"):
        trainer_of(name, base(), tmp_path, peft_config=lora(manytune))
