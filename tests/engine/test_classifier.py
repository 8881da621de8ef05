"""Rows of many classifiers in one batch have the probabilities of each classifier alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.tiny_classifiers import save_base

from manytune.engine.classifier import Classifier
from manytune.engine.text_runner import TextJob, TextRunner, TextTokens
from manytune.errors import ConfigError, ContextLengthError, RequestError
from manytune.methods.registry import peft_config_from
from manytune.model.attach import get_peft_model
from manytune.model.classifier import train_new_modules, with_head
from manytune.store.attaching import attached
from manytune.store.base import Base, load_base
from manytune.store.classifier_base import classifier_base
from manytune.store.resident import ResidentAdapter, read_resident
from manytune.store.servability import served_terms

METHODS: Mapping[str, tuple[int, dict[str, Any]]] = {
    "lora": (2, {"r": 2, "target_modules": "all-linear"}),
    "lora-5": (5, {"r": 3, "target_modules": "all-linear"}),
    "ia3": (3, {"target_modules": "all-linear", "feedforward_modules": []}),
    "bottleneck": (2, {"bottleneck_size": 4}),
    "full": (3, {}),
}
TEXTS = [TextTokens((0, 7, 8, 9, 2)), TextTokens((0, 20, 2)), TextTokens((0, *range(5, 17), 2))]


@pytest.fixture(scope="module", params=["bert", "distilbert", "roberta", "llama"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    directory = tmp_path_factory.mktemp(request.param) / "base"
    return load_base(str(save_base(request.param, directory)))


def made(directory: Path, base: Base, name: str) -> ResidentAdapter:
    """An adapter with random weights, saved and read back."""
    classes, options = METHODS[name]
    torch.manual_seed(len(name))
    model = with_head(base.model, list(map(str, range(classes))), pad_id=base.tokenizer.pad_token_id)
    config = peft_config_from(name.partition("-")[0], task_type="SEQ_CLS", **options)
    train_new_modules(model, config)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.4 + 0.1)
    adapted.save_pretrained(str(directory / name))
    adapted.unload()
    return read_resident(directory / name)


def alone(base: Base, directory: Path, name: str, text: TextTokens) -> torch.Tensor:
    classes, _ = METHODS[name]
    whole = classifier_base(base, list(map(str, range(classes))))
    with attached(whole, directory / name) as model, torch.no_grad():
        return model(input_ids=torch.tensor([text.ids])).logits.softmax(-1)[0]


def test_each_row_has_its_own_adapter_and_its_own_head(base: Base, tmp_path: Path) -> None:
    # Where a DistilBERT's sublayers are, the method isn't told here.
    names = [name for name in METHODS if name != "bottleneck" or base.model.config.model_type != "distilbert"]
    adapters = {name: made(tmp_path, base, name) for name in names}
    runner = TextRunner(lambda: Classifier(base.model, pad_id=base.tokenizer.pad_token_id))
    asked = [
        TextJob(texts=TEXTS[place % 2 :], adapter=one, terms=served_terms(one, base.model))
        for place, one in enumerate(adapters.values())
    ]
    sizes: list[int] = []
    layers = base.model.base_model

    def note(_: Any, args: Any, kwargs: Any) -> None:
        sizes.append(len(kwargs["input_ids"]))

    with layers.register_forward_pre_hook(note, with_kwargs=True):
        for one in asked:
            runner.add(one)
        while runner.busy:
            runner.step()
    # A full fine-tune of an encoder with a table of positions goes through it text by text; all others share a forward.
    rows, alone_in_it = sum(len(one.texts) for one in asked), len(asked[-1].texts) if base.is_encoder else 0
    assert sorted(sizes) == [1] * alone_in_it + [rows - alone_in_it]
    for (name, _), one in zip(adapters.items(), asked, strict=True):
        for text, found in zip(one.texts, one.result.result(), strict=True):
            expected = alone(base, tmp_path, name, text)
            torch.testing.assert_close(torch.tensor(found), expected, atol=1e-5, rtol=0)


def test_texts_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    base = load_base(str(save_base("bert", tmp_path / "base")))
    classifier = Classifier(base.model, pad_id=1, max_tokens=4)
    for text, error, message in (
        (TextTokens(()), RequestError, "text 0 has no tokens"),
        (TextTokens((1, 2, 3, 4, 5)), ContextLengthError, "5 tokens; at most 4"),
        (TextTokens((999,)), RequestError, "token 999"),
    ):
        with pytest.raises(error, match=message):
            classifier.check([text])


def test_an_adapter_with_another_head_or_with_virtual_tokens_is_refused(tmp_path: Path) -> None:
    base = load_base(str(save_base("bert", tmp_path / "base")))
    model = with_head(base.model, ["a", "b"], pad_id=1)
    config = peft_config_from("prompt-tuning", task_type="SEQ_CLS", num_virtual_tokens=2)
    get_peft_model(model, config).save_pretrained(str(tmp_path / "prompt"))
    with pytest.raises(ConfigError, match="/v1/classify doesn't support"):
        served_terms(read_resident(tmp_path / "prompt"), base.model)
    other = load_base(str(save_base("llama", tmp_path / "llama")))
    lora = made(tmp_path, base, "lora")
    with pytest.raises(
        ConfigError, match=r"the adapter's head .*; expected that of a LlamaForSequenceClassification"
    ):
        served_terms(lora, other.model)
