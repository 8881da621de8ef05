"""Adapters of every method that has terms share the server's batches, each answering as it does alone."""

import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient
from tests.server.world import LIMIT, app_of, plain_ids
from tests.store.adapters_made import make_adapter
from tests.store.tiny import tiny_tokenizer
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from manytune.errors import PeftWarning
from manytune.store.attaching import attached
from manytune.store.base import Base, load_base
from manytune.store.store import AdapterStore

METHODS = {
    "lora": {"method": "lora"},
    "lora-head": {"method": "lora", "target_modules": ["lm_head", "q_proj"]},
    "lora-embeddings": {"method": "lora", "target_modules": ["embed_tokens", "v_proj"]},
    "trained-head": {"method": "lora", "modules_to_save": ["lm_head"]},
    "dora": {"method": "lora", "use_dora": True},
    "adalora": {
        "method": "adalora", "init_r": 4, "target_r": 2, "total_step": 10, "target_modules": ["q_proj", "up_proj"],
    },
    "vera": {"method": "vera", "r": 4, "target_modules": ["q_proj", "o_proj"]},
    "tokens": {"method": "trainable-tokens", "token_indices": [5, 9, 20]},
    "lora-tokens": {"method": "lora", "trainable_token_indices": [4, 11]},
    "own-tables": {"method": "lora"},
    "norms": {"method": "selective", "parameters": "layernorm"},
    "weights": {"method": "selective", "parameters": ["q_proj.weight"]},
    "ia3": {"method": "ia3"},
    "bottleneck": {"method": "bottleneck", "bottleneck_size": 3},
    "prompt": {"method": "prompt-tuning", "num_virtual_tokens": 2},
    "prefix": {"method": "prefix-tuning", "num_virtual_tokens": 2},
}  # fmt: skip


def with_its_own_table(directory: Path) -> None:
    """Let an adapter bring another table than the base's, as HF PEFT saves it where the base's was trained, too."""
    file = directory / "adapter_model.safetensors"
    torch.manual_seed(5)
    table = torch.randn(29, 16)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    save_file(load_file(file) | {f"base_model.model.{name}": table.clone() for name in names}, file)
    (directory / "manifest.json").unlink()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, base: Base) -> AdapterStore:
    directory = tmp_path_factory.mktemp("methods")
    kept = AdapterStore(directory / "store")
    for seed, (name, options) in enumerate(METHODS.items()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PeftWarning)  # tables of the base are saved along
            made = make_adapter(directory / name, base, seed=seed, **options)
        if name == "own-tables":
            with_its_own_table(made)
        kept.add(made, name=name, base=base)
    return kept


def as_attached_alone(base: Base, store: AdapterStore, name: str, ids: tuple[int, ...]) -> str:
    """What transformers writes with the one adapter attached."""
    config = GenerationConfig(do_sample=False, max_new_tokens=LIMIT, eos_token_id=0, pad_token_id=0)
    alone = nullcontext(load_base(base.name).model) if name == "base" else None
    with alone or attached(load_base(base.name), Path(store.path(name))) as model, torch.no_grad():
        inputs = torch.tensor([ids])
        found = model.generate(
            input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=config
        )
    written = [token for token in found[0, len(ids) :].tolist() if token != 0]
    return base.tokenizer.decode(written, skip_special_tokens=False)


def require_equal_answers(
    client: TestClient,
    base: Base,
    store: AdapterStore,
    names: Iterable[str],
    texts: Sequence[str] = ("abc", "hello"),
) -> set[str]:
    """Ask all of them at once; each answers as it does alone. Gives the different answers."""
    asked = [(name, text) for name in names for text in texts]

    def answer(name: str, text: str) -> str:
        body = {"model": name, "prompt": text, "max_tokens": LIMIT, "temperature": 0}
        response = client.post("/v1/completions", json=body)
        assert response.status_code == 200, (name, response.text)
        written: str = response.json()["choices"][0]["text"]
        return written

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda one: answer(*one), asked))
    for (name, text), found in zip(asked, answers, strict=True):
        assert found == as_attached_alone(base, store, name, plain_ids(base, text)), (name, text)
    return set(answers)


def test_adapters_of_all_methods_in_one_batch_answer_over_http_as_they_do_alone(
    base: Base, store: AdapterStore
) -> None:
    with TestClient(app_of(base, store), base_url="http://127.0.0.1") as client:
        assert len(require_equal_answers(client, base, store, METHODS)) > len(METHODS)


BIASES: dict[str, dict[str, Any]] = {
    "bitfit": {"method": "selective", "parameters": "bias"},
    "lora": {"method": "lora", "target_modules": ["q_proj"]},
    "lora-and-its-biases": {"method": "lora", "target_modules": ["q_proj"], "bias": "lora_only"},
    "lora-and-all-biases": {"method": "lora", "target_modules": ["v_proj"], "bias": "all"},
    "ia3": {"method": "ia3", "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
}


def test_trained_biases_share_the_batches_of_a_base_that_has_biases(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=29,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=0,
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    base = load_base(str(tmp_path / "base"))
    kept = AdapterStore(tmp_path / "store")
    for seed, (name, options) in enumerate(BIASES.items()):
        kept.add(make_adapter(tmp_path / name, base, seed=seed, **options), name=name, base=base)
    with TestClient(app_of(base, kept), base_url="http://127.0.0.1") as client:
        assert len(require_equal_answers(client, base, kept, ["base", *BIASES])) > len(BIASES)
