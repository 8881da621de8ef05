"""A file of each form: `manytune init`, then `train`, then `evaluate`, without an edit in between."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.chat_templates import tokenizer_of
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from manytune.cli.main import build_app

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


def messages(number: int) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": "It is a fox."},
        {"role": "user", "content": f"what is {number}+2?"},
        {"role": "assistant", "content": f"It is {number + 2}."},
        {"role": "user", "content": "a b c"},
        {"role": "assistant", "content": "d e f"},
    ]


def called(number: int) -> list[dict[str, Any]]:
    call = {"id": "c1", "function": {"name": "add", "arguments": json.dumps({"a": number})}}
    return [
        {"role": "user", "content": f"add {number}"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]


FORMS: dict[str, Any] = {
    "openai": lambda n: {"messages": messages(n)},
    "openai-tools": lambda n: {"messages": called(n), "tools": TOOLS},
    "sharegpt": lambda n: {
        "conversations": [{"from": "human", "value": f"what {n}"}, {"from": "gpt", "value": "fox"}]
    },
    "alpaca": lambda n: {
        "instruction": f"what {n}",
        "input": "a b",
        "output": "fox",
        "history": [["a", "b"]],
    },
    "trl": lambda n: {"prompt": messages(n)[:-1], "completion": messages(n)[-1:]},
    "text": lambda n: {"text": f"the quick brown fox jumps {n} " * (n % 4 + 1)},
    "prompt-completion": lambda n: {"prompt": f"what is {n}?", "completion": "fox"},
    "dialogue": lambda n: {"dialogue": f"what is {n}? It is a fox. " * 2, "summary": f"fox {n}"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("base")
    tokenizer = tokenizer_of("smollm2")
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return str(directory)


def manytune(*arguments: str) -> Any:
    result = CliRunner().invoke(build_app(), list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("form", FORMS)
def test_a_file_is_trained_on_and_scored(
    form: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text("".join(f"{json.dumps(FORMS[form](n))}\n" for n in range(12)))
    manytune("init", "train.jsonl")
    # The embedded base in small: a flag, no edit.
    manytune("train", "recipe.yaml", "--set", f"base={base}", "--set", "training.epochs=1")
    manytune("evaluate", "runs/recipe", "--max-new-tokens", "4")
    found = json.loads(Path("runs/recipe/evaluation.json").read_text())
    assert [result["name"] for result in found["results"]] == ["base", "recipe"]
    kept = json.loads(Path("runs/recipe/adapter/manifest.json").read_text())["recipe"]["data"]["format"]
    assert kept == ("auto" if form in ("prompt-completion", "dialogue") else form.removesuffix("-tools"))


def test_every_answer_can_be_asked_for_and_calls_are_scored(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text("".join(f"{json.dumps(FORMS['openai'](n))}\n" for n in range(12)))
    Path("more.jsonl").write_text("".join(f"{json.dumps(FORMS['openai-tools'](n))}\n" for n in range(3)))
    Path("schema.json").write_text('{"type": "object"}')
    manytune("init", "train.jsonl")
    manytune("train", "recipe.yaml", "--set", f"base={base}", "--set", "training.max_steps=1")
    manytune(
        "evaluate", "runs/recipe", "--max-new-tokens", "4", "--turns", "each", "--metrics", "exact_match"
    )
    found = json.loads(Path("runs/recipe/evaluation.json").read_text())
    assert [item["references"][0] for item in found["items"]][1] == "d e f"
    assert len({item["group"] for item in found["items"]}) == len(found["items"]) / 2
    metrics = "tool_calls,tool_names,json_valid"
    manytune(
        *("evaluate", "runs/recipe", "--data", "more.jsonl", "--max-new-tokens", "4"),
        *("--metrics", metrics, "--schema", "schema.json"),
    )
    found = json.loads(Path("runs/recipe/evaluation.json").read_text())
    assert [score["metric"] for score in found["results"][0]["scores"]] == [
        *metrics.split(","),
        "json_schema",
    ]
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 0}}' in found["items"][0]["references"][0]


def test_an_adapter_of_conversations_answers_a_file_of_them_and_asks_for_messages_in_place_of_fields(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text("".join(f"{json.dumps(FORMS['openai'](n))}\n" for n in range(12)))
    Path("asked.jsonl").write_text(
        json.dumps({"messages": messages(1)[:2]}) + "\n" + json.dumps(FORMS["openai"](2)) + "\n"
    )
    manytune("init", "train.jsonl")
    manytune("train", "recipe.yaml", "--set", f"base={base}", "--set", "training.max_steps=1")
    asked = ("generate", "--adapter", "runs/recipe", "--max-new-tokens", "3")
    answers = json.loads(manytune(*asked, "--file", "asked.jsonl", "--json").stdout)
    assert [answer["where"] for answer in answers] == ["asked.jsonl:1", "asked.jsonl:2"]
    refused = CliRunner().invoke(build_app(), [*asked, "--field", "x=y"])
    assert refused.exit_code == 1
    assert "was trained on conversations, so it has no prompt template for fields" in " ".join(
        refused.stderr.split()
    )
