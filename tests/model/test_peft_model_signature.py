"""What trainers read from a model's `forward`: a `PeftModel` without a task has the signature of its base."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.tiny_models import BERT, FAMILIES, Family
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, default_data_collator

from manytune import LoraConfig, PeftModel, get_peft_model


class Net(nn.Module):
    """A model of a user's own, whose columns nobody else has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lin = nn.Linear(4, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, left: Tensor, right: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        score = self.head(torch.tanh(self.lin(left - right))).squeeze(-1)
        loss = nn.functional.mse_loss(score, labels) if labels is not None else score.sum()
        return {"loss": loss, "score": score}


def adapted() -> PeftModel:
    torch.manual_seed(1)
    return get_peft_model(Net(), LoraConfig(target_modules=["lin"], init_lora_weights=False))


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_it_is_that_of_the_base(family: Family) -> None:
    base = family.build()
    expected = inspect.signature(base.forward)
    assert (
        inspect.signature(get_peft_model(base, LoraConfig(target_modules="all-linear")).forward) == expected
    )


def test_a_trainer_keeps_the_columns_and_measures_the_loss(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    left, right = torch.randn(2, 8, 4, generator=generator)
    rows: list[dict[str, Any]] = [
        {"left": one.tolist(), "right": other.tolist(), "labels": float((one - other).sum()), "note": 1}
        for one, other in zip(left, right, strict=True)
    ]
    from datasets import Dataset

    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=20,
        learning_rate=0.05,
        per_device_train_batch_size=8,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    data = Dataset.from_list(rows)
    trainer = Trainer(
        adapted(), arguments, train_dataset=data, eval_dataset=data, data_collator=default_data_collator
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.9 * before


def test_a_copy_runs_itself() -> None:
    model = adapted()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    x = torch.ones(2, 4)
    assert twin(x, -x)["score"].abs().max() == 0
    assert model(x, -x)["score"].abs().min() > 0


def test_positions_names_and_labels_reach_the_base() -> None:
    model, x = adapted(), torch.ones(2, 4)
    assert torch.equal(model(x, -x)["score"], model(right=-x, left=x)["score"])
    assert model(x, -x, labels=torch.zeros(2))["loss"] == (model(x, -x)["score"] ** 2).mean()
    assert torch.equal(PeftModel.forward(model, x, right=-x)["score"], model(x, -x)["score"])


# torch itself makes what it says shouldn't be made.
@pytest.mark.filterwarnings("ignore:.*Function.* should not be instantiated:DeprecationWarning")
def test_a_compiled_model_gives_the_same() -> None:
    model = get_peft_model(BERT.build(), LoraConfig(target_modules=["query"], init_lora_weights=False)).eval()
    inputs = BERT.inputs()
    expected = model(**inputs).logits
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(**inputs).logits, expected)
