"""Checkpoints of transformers' Trainer hold adapters alone, as those of HF PEFT's models do, and load again."""

from __future__ import annotations

import copy
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.forked_python import forked_python
from tests.integration.trainer_runs import STEPS, adapted, base, lora, losses, rows, trained, trainer_of
from transformers import Trainer

import manytune
from manytune import PeftModel


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # HF PEFT's model
@pytest.mark.parametrize("tied", [True, False])
def test_checkpoints_are_those_of_hf_peft(tied: bool, tmp_path: Path) -> None:
    expected = trained(peft, tmp_path / "theirs", tied=tied)
    found = trained(manytune, tmp_path / "ours", tied=tied)
    assert losses(found) == pytest.approx(losses(expected), abs=1e-5)
    assert files(tmp_path / "ours") == files(tmp_path / "theirs")
    for step in (3, 6):
        theirs = load_file(tmp_path / "theirs" / f"checkpoint-{step}" / "adapter_model.safetensors")
        ours = load_file(tmp_path / "ours" / f"checkpoint-{step}" / "adapter_model.safetensors")
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_training_resumes_where_it_was_and_ends_with_the_best(tied: bool, tmp_path: Path) -> None:
    whole = trained(manytune, tmp_path, tied=tied)
    history = losses(whole)
    assert str(whole.state.best_model_checkpoint).endswith("checkpoint-3")
    assert whole.evaluate()["eval_loss"] == history[3]
    shutil.rmtree(tmp_path / f"checkpoint-{STEPS}")
    resumed = trained(manytune, tmp_path, tied=tied, resume=True)
    assert losses(resumed) == history
    assert resumed.evaluate()["eval_loss"] == history[3]


def with_two_adapters(library: Any) -> Any:
    """Both of one shape, so that nothing else would notice if one got the other's weights."""
    model = adapted(library)
    model.add_adapter("other", lora(library))
    model.set_adapter("other")
    return model


METHODS: dict[str, Callable[[], Any]] = {
    "ia3": lambda: manytune.IA3Config(
        task_type="CAUSAL_LM", target_modules=["v_proj"], feedforward_modules=[]
    ),
    "vera": lambda: manytune.VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
    "prompt": lambda: manytune.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "prefix": lambda: manytune.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "full": lambda: manytune.FullConfig(task_type="CAUSAL_LM"),
    "bottleneck": lambda: manytune.BottleneckConfig(task_type="CAUSAL_LM"),
    "modules_to_save": lambda: manytune.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
}


def of_method(name: str) -> Any:
    model = base()
    torch.manual_seed(7)
    return manytune.get_peft_model(model, METHODS[name]())


@pytest.mark.parametrize("kind", ["two adapters", *METHODS])
def test_every_kind_of_model_resumes_and_ends_with_the_best(kind: str, tmp_path: Path) -> None:
    def trainer() -> Trainer:
        model = with_two_adapters(manytune) if kind == "two adapters" else of_method(kind)
        return trainer_of(model, tmp_path)

    whole = trainer()
    whole.train()
    history = losses(whole)
    best = max(history[3], history[7])
    assert whole.evaluate()["eval_loss"] == best
    shutil.rmtree(tmp_path / f"checkpoint-{STEPS}")
    resumed = trainer()
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == history
    assert resumed.evaluate()["eval_loss"] == best


def test_label_smoothing_shifts_the_labels_of_a_language_model(tmp_path: Path) -> None:
    """The Trainer looks for the base's class behind the adapters."""
    model = base()
    ids = torch.tensor([row["input_ids"] for row in rows()[:16]])
    log_probs = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    chosen = log_probs.gather(-1, ids[:, 1:, None]).mean()
    expected = -(0.9 * chosen + 0.1 * log_probs.mean())
    trainer = trainer_of(manytune.get_peft_model(model, lora(manytune)), tmp_path, label_smoothing_factor=0.1)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_a_model_is_of_both_libraries_and_keeps_its_own_methods() -> None:
    model = adapted(manytune)
    assert isinstance(model, peft.PeftModelForCausalLM)
    assert isinstance(model, manytune.PeftModelForCausalLM)
    assert not isinstance(model, peft.PeftModelForSequenceClassification)
    assert type(model) is manytune.PeftModelForCausalLM
    assert not isinstance(base(), peft.PeftModel)


def test_copies_and_pickles_are_models_like_it() -> None:
    model = adapted(manytune)
    ids = torch.tensor([[3, 4, 5]])
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is type(model)
        assert torch.equal(twin(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_class_made_from_its_class_can_be_set_as_fsdp_does() -> None:
    model = adapted(manytune)
    ids = torch.tensor([[3, 4, 5]])
    before = model(input_ids=ids).logits
    read = model.__class__
    model.__class__ = type("Sharded", (read,), {})
    assert type(model).__name__ == "Sharded"
    assert isinstance(model, PeftModel)
    assert isinstance(model, peft.PeftModel)
    assert torch.equal(model(input_ids=ids).logits, before)


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    adapted(manytune).save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()


def test_a_state_dict_gathered_elsewhere_is_what_is_saved(tmp_path: Path) -> None:
    model = adapted(manytune)
    gathered = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "before")
    model.save_pretrained(tmp_path / "gathered", state_dict=gathered)
    before = load_file(tmp_path / "before" / "adapter_model.safetensors")
    after = load_file(tmp_path / "gathered" / "adapter_model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor + 1) for name, tensor in before.items())


def test_without_peft_a_trainer_with_adapter_checkpoints_does_the_same(tmp_path: Path) -> None:
    with forked_python() as python:
        ran = subprocess.run(
            [python, "-m", "tests.integration.trainer_runs", tmp_path / "without"],
            capture_output=True,
            text=True,
        )
    assert ran.returncode == 0, ran.stderr
    expected = trained(manytune, tmp_path / "with", tied=True)
    history = " ".join(str(loss) for loss in [*losses(expected), losses(expected)[3]])
    assert ran.stdout.splitlines().count(history) == 2, ran.stdout
    for step in (3, 6):
        found = tmp_path / "without" / f"checkpoint-{step}"
        assert files(found) == files(tmp_path / "with" / f"checkpoint-{step}") - {"training_args.bin"}
        tensors = load_file(found / "adapter_model.safetensors")
        for name, tensor in load_file(
            tmp_path / "with" / f"checkpoint-{step}" / "adapter_model.safetensors"
        ).items():
            assert torch.equal(tensors[name], tensor)
