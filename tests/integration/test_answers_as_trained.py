"""An adapter that learned its rows by heart answers with their completions, whoever asks it.

The chat template is a reasoning model's, which writes an empty block before answers; some completions have a special
token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from tests.server.world import app_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from manytune.cli.main import build_app
from manytune.evaluation.results import read_evaluation
from manytune.store.base import load_base
from manytune.store.store import AdapterStore
from manytune.training.recipe import recipe_from
from manytune.training.run import run

TEMPLATE = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{{- 'A<think>\\n' + (m.reasoning_content if m.reasoning_content is string else '') + '\\n</think>\\n\\n' }}"
    "{%- else %}{{- 'Q' }}{%- endif %}{{- m.content + '<end>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'A' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
LETTERS = [*"QA+=(),0123456789abcdefghijklmnopqrstuvwxyz ", "\n"]
ROWS = [("1+2=", "3"), ("4+4=", "8"), ("call(12)", "<|tool|>add(1, 2)"), ("call(34)", "<|tool|>add(3, 4)")]


def save_base(directory: Path) -> None:
    special = ["<end>", "<unk>", "<|tool|>"]
    words = {word: place for place, word in enumerate([*special, *LETTERS])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", unk_token="<unk>", additional_special_tokens=["<|tool|>"]
    )
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer), **sizes, initializer_range=0.2, bos_token_id=None, eos_token_id=0
    )
    LlamaForCausalLM(config).save_pretrained(directory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two runs over the same rows: `thinking` with the template's empty block, `silent` without it."""
    folder = tmp_path_factory.mktemp("learned")
    save_base(folder / "base")
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in ROWS)
    )
    data = {"train": str(folder / "rows.jsonl"), "test": str(folder / "rows.jsonl"), "validation": None}
    for name, more in (("thinking", {}), ("silent", {"chat_template_kwargs": {"enable_thinking": False}})):
        run(
            recipe_from(
                {
                    "base": str(folder / "base"),
                    "data": {**data, **more},
                    "method": {"name": "lora", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
                    "training": {
                        "epochs": 60,
                        "batch_size": 4,
                        "learning_rate": 0.02,
                        "checkpoint_every": None,
                    },
                    "output": str(folder / name),
                }
            )
        )
    return folder


def manytune(*arguments: str | Path, stdin: str | None = None) -> str:
    result = CliRunner().invoke(build_app(), [str(one) for one in arguments], input=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("name", ["thinking", "silent"])
def test_the_score_of_what_is_known_by_heart_is_one(folder: Path, name: str) -> None:
    manytune("evaluate", folder / name, "--metrics", "exact_match,rouge1", "--max-new-tokens", "40")
    evaluation = read_evaluation(folder / name / "evaluation.json")
    scores = {score.metric: score.value for score in evaluation.result(name).scores}
    assert scores["exact_match"] == 1.0
    assert [answer.text for answer in evaluation.result(name).answers] == [
        completion for _, completion in ROWS
    ]


@pytest.mark.parametrize("name", ["thinking", "silent"])
@pytest.mark.parametrize(("prompt", "completion"), ROWS)
def test_generate_and_chat_say_what_was_trained(
    folder: Path, name: str, prompt: str, completion: str
) -> None:
    assert manytune("generate", prompt, "--adapter", folder / name) == f"{completion}\n"
    assert manytune("chat", "--adapter", folder / name, stdin=f"{prompt}\n") == f"{completion}\n"
    (found,) = json.loads(manytune("generate", prompt, "--adapter", folder / name, "--json"))
    assert (found["answers"][0]["text"], found["answers"][0]["reasoning"]) == (completion, "")


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    store = AdapterStore(tmp_path_factory.mktemp("store"))
    for name in ("thinking", "silent"):
        store.add(folder / name / "adapter", name=name)
    with TestClient(app_of(load_base(str(folder / "base")), store), base_url="http://localhost") as client:
        yield client


def asked(client: TestClient, prompt: str, **more: Any) -> Any:
    body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, **more}
    return client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("name", ["thinking", "silent"])
@pytest.mark.parametrize(("prompt", "completion"), ROWS)
def test_the_server_says_what_was_trained(
    client: TestClient, name: str, prompt: str, completion: str
) -> None:
    choice = asked(client, prompt, model=name).json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": completion, "refusal": None}
    assert choice["finish_reason"] == "stop"
    fields = {"fields": {"prompt": prompt}, "messages": []}
    assert asked(client, "", model=name, **fields).json()["choices"][0]["message"]["content"] == completion
    answers = client.post(
        "/v1/compare",
        json={"models": [name], "messages": [{"role": "user", "content": prompt}], "stream": False},
    ).json()["answers"]
    assert answers[0]["text"] == completion


def deltas(response: Any) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
    return [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]


def test_a_stream_brings_the_answer_alone(client: TestClient) -> None:
    found = deltas(asked(client, "1+2=", model="thinking", stream=True))
    assert "".join(delta.get("content", "") for delta in found) == "3"
    assert not any("reasoning_content" in delta for delta in found)


def test_a_stop_string_is_not_found_in_the_templates_block(client: TestClient) -> None:
    message = asked(client, "1+2=", model="thinking", stop=["\n\n"]).json()["choices"][0]["message"]
    assert message["content"] == "3"
    message = asked(client, "call(12)", model="thinking", stop=["(1"]).json()["choices"][0]["message"]
    assert message["content"] == "<|tool|>add"


def test_a_request_may_set_the_templates_variables(client: TestClient) -> None:
    def prompt_tokens(**more: Any) -> int:
        return int(asked(client, "1+2=", max_tokens=2, **more).json()["usage"]["prompt_tokens"])

    block = 6  # <think>, two line breaks, </think>, two line breaks
    off, on = ({"chat_template_kwargs": {"enable_thinking": value}} for value in (False, True))
    assert prompt_tokens(model="thinking", **off) == prompt_tokens(model="thinking") + block
    assert prompt_tokens(model="silent", **on) == prompt_tokens(model="silent") - block
    assert prompt_tokens(model="base", **off) == prompt_tokens(model="base") + block
    error = asked(client, "1+2=", model="silent", chat_template_kwargs={"enable_thinkin": True}).json()[
        "error"
    ]
    assert (
        "the chat template has no variable 'enable_thinkin'; did you mean 'enable_thinking'?"
        in error["message"]
    )
    assert error["param"] == "chat_template_kwargs"


def test_what_the_model_thinks_is_reasoning_content(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"prompt": "2+2=", "completion": "<think>\ntwo and two\n</think>\n\n4"}) + "\n"
    )
    # The template writes reasoning that is part of the answer's message, and this one's is in its content.
    template = TEMPLATE.replace(
        "<think>\\n' + (", "' + ('<think>\\n' if '</think>' not in m.content else '') + ("
    ).replace("'\\n</think>\\n\\n' }}", "('\\n</think>\\n\\n' if '</think>' not in m.content else '') }}")
    base = tmp_path / "base"
    save_base(base)
    (base / "chat_template.jinja").write_text(template)
    run(
        recipe_from(
            {
                "base": str(base),
                "data": {
                    "train": str(tmp_path / "rows.jsonl"),
                    "test": str(tmp_path / "rows.jsonl"),
                    "validation": None,
                },
                "method": {"name": "lora", "r": 8, "target_modules": "all-linear"},
                "training": {"epochs": 60, "learning_rate": 0.01, "checkpoint_every": None},
                "output": str(tmp_path / "run"),
            }
        )
    )
    assert manytune("generate", "2+2=", "--adapter", tmp_path / "run") == "4\n"
    manytune("evaluate", tmp_path / "run", "--metrics", "exact_match", "--max-new-tokens", "40")
    (answer,) = read_evaluation(tmp_path / "run" / "evaluation.json").result("run").answers
    assert answer.text == "4"
    store = AdapterStore(tmp_path / "store")
    store.add(tmp_path / "run" / "adapter", name="thinker")
    with TestClient(app_of(load_base(str(base)), store), base_url="http://localhost") as client:
        message = asked(client, "2+2=", model="thinker").json()["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("two and two", "4")
        found = deltas(asked(client, "2+2=", model="thinker", stream=True))
        assert "".join(delta.get("reasoning_content", "") for delta in found) == "two and two"
        assert "".join(delta.get("content", "") for delta in found) == "4"
        again = [{"role": "user", "content": "2+2="}, message, {"role": "user", "content": "2+2="}]
        body = {"model": "thinker", "messages": [{k: v for k, v in one.items() if v} for one in again]}
        assert client.post("/v1/chat/completions", json={**body, "max_tokens": 2}).status_code == 200
