"""Whoever asks an adapter makes the same prompt of the same messages, token for token: that of its training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.server.world import app_of
from tests.training.tiny_run import recipe_content
from typer.testing import CliRunner

from manytune.cli.chosen import choose
from manytune.cli.main import build_app
from manytune.data.templates import Example, Segment
from manytune.server.prompts import PromptOptions, Prompts
from manytune.store.base import Base, load_base
from manytune.store.manifest import Manifest
from manytune.store.store import AdapterStore
from manytune.training.recipe import Recipe, load_recipe, recipe_from
from manytune.training.run import run

PLAIN = (
    "{% for m in messages %}{{ m.role }} {{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
DATED = "{{ strftime_now('%A') }} " + PLAIN
SWITCHED = PLAIN.replace("m.role }} ", "m.role }}{{ ' quietly' if quiet is defined and quiet }} ").replace(
    "assistant {%", "assistant{{ ' quietly' if quiet is defined and quiet }} {%"
)
REFUSED = PLAIN.replace("assistant {%", "answer {%")
LONG = "abcdefgh " * 30  # the base has 64 positions


def trained(folder: Path, template: str | None, **data: Any) -> tuple[Path, Recipe, Base]:
    content = recipe_content(folder, max_steps=1)
    if template is not None:
        (folder / "base" / "chat_template.jinja").write_text(template)
    run(recipe_from({**content, "data": {**content["data"], "test": 0.2, **data}}))
    return folder / "run", load_recipe(folder / "run" / "recipe.yaml"), load_base(str(folder / "base"))


def manifest_of(directory: Path) -> Manifest:
    return Manifest.read(directory / "adapter" / "manifest.json")


def command_line(directory: Path, base: Base, text: str) -> tuple[int, ...]:
    """The prompt of `evaluate`, `generate` and `chat`."""
    return (
        choose([str(directory)], directory.parent / "store")[0]
        .encoder(base, new_tokens=3)
        .prompt_ids([Segment("user", text)])
    )


def server(directory: Path, base: Base, text: str, **kwargs: Any) -> tuple[int, ...]:
    prompts = Prompts(base, max_chars=10_000)
    options = PromptOptions(kwargs=kwargs)
    return prompts.conversation([Segment("user", text)], manifest_of(directory), options).tokens


@pytest.mark.parametrize(
    ("template", "data"),
    [
        (None, {}),
        (PLAIN, {}),
        (PLAIN, {"chat": False}),
        (REFUSED, {"chat": False}),
        (SWITCHED, {"chat_template_kwargs": {"quiet": True}}),
        (DATED, {"date": "2024-07-26"}),
        (DATED, {}),
        (PLAIN, {"max_length": 40, "overflow": "truncate_prompt"}),
    ],
)
def test_the_prompt_is_that_of_the_training(
    tmp_path: Path, template: str | None, data: dict[str, Any]
) -> None:
    directory, recipe, base = trained(tmp_path, template, **data)
    example = Example((Segment("user", "abc de"),), "fg", "rows", 1)
    expected = recipe.data.encoder(base.tokenizer).encode(example).prompt_ids
    assert command_line(directory, base, "abc de") == server(directory, base, "abc de") == expected


@pytest.mark.parametrize("template", [None, PLAIN])
def test_a_prompt_is_cut_by_one_rule_everywhere(tmp_path: Path, template: str | None) -> None:
    directory, _, base = trained(tmp_path, template, max_length=40, overflow="truncate_prompt")
    options = manifest_of(directory).encoding_options or {}
    answers = sorted(
        len(json.loads(line)["answer"]) + 1 for line in (tmp_path / "rows.jsonl").read_text().splitlines()
    )
    assert 40 - answers[-1] <= options["max_prompt"] <= 40 - answers[len(answers) // 2]
    ids = command_line(directory, base, LONG)
    assert len(ids) == options["max_prompt"]
    assert server(directory, base, LONG) == ids
    rows = tmp_path / "long.jsonl"
    rows.write_text(json.dumps({"text": LONG, "answer": "ab"}) + "\n")
    for arguments in (
        ["generate", LONG, "--adapter", directory],
        ["generate", "--file", rows, "--adapter", directory],
        ["evaluate", directory, "--data", rows, "--metrics", "exact_match,perplexity"],
    ):
        result = CliRunner().invoke(build_app(), [*map(str, arguments), "--max-new-tokens", "3"])
        assert result.exit_code == 0, result.output
    store = AdapterStore(tmp_path / "store")
    store.add(directory / "adapter", name="cut")
    with TestClient(app_of(base, store), base_url="http://localhost") as client:
        body = {"model": "cut", "messages": [{"role": "user", "content": LONG}], "max_tokens": 3}
        usage = client.post("/v1/chat/completions", json=body).json()["usage"]
    assert usage["prompt_tokens"] == len(ids)


def test_a_prompt_that_is_cut_leaves_room_for_the_longest_answer(tmp_path: Path) -> None:
    directory, _, base = trained(tmp_path, None, max_length=64, overflow="truncate_prompt")
    assert base.positions == 64
    segments = [Segment("user", LONG)]
    ids = (
        choose([str(directory)], directory.parent / "store")[0]
        .encoder(base, new_tokens=40)
        .prompt_ids(segments)
    )
    assert len(ids) == 64 - 40
    served = Prompts(base, max_chars=10_000).conversation(
        segments, manifest_of(directory), PromptOptions(new_tokens=40)
    )
    assert served.tokens == ids
    result = CliRunner().invoke(
        build_app(), ["generate", LONG, "--adapter", str(directory), "--max-new-tokens", "40"]
    )
    assert result.exit_code == 0, result.output


def test_without_cutting_in_training_nothing_is_cut_later(tmp_path: Path) -> None:
    directory, _, base = trained(tmp_path, None, max_length=40, overflow="drop")
    assert manifest_of(directory).encoding_options is None
    assert len(command_line(directory, base, LONG)) == len(server(directory, base, LONG)) == len(LONG)


def test_a_request_may_set_variables_on_top_of_the_adapters(tmp_path: Path) -> None:
    directory, _, base = trained(tmp_path, SWITCHED, chat_template_kwargs={"quiet": True})
    assert server(directory, base, "abc", quiet=False) != server(directory, base, "abc")
    assert server(directory, base, "abc", quiet=True) == server(directory, base, "abc")


def test_an_adapter_of_a_template_that_is_refused_is_served_and_the_base_says_why_it_is_not(
    tmp_path: Path,
) -> None:
    directory, _, base = trained(tmp_path, REFUSED, chat=False)
    store = AdapterStore(tmp_path / "store")
    store.add(directory / "adapter", name="plain")
    with TestClient(app_of(base, store), base_url="http://localhost") as client:
        body = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 3}
        assert client.post("/v1/chat/completions", json={**body, "model": "plain"}).status_code == 200
        refused = client.post("/v1/chat/completions", json={**body, "model": "base"})
        assert refused.status_code == 400
        assert "the chat template writes a prompt differently" in refused.json()["error"]["message"]
        completion = {"model": "base", "prompt": "abc", "max_tokens": 3}
        assert client.post("/v1/completions", json=completion).status_code == 200


def test_runs_of_two_days_are_evaluated_together_each_with_its_own_date(tmp_path: Path) -> None:
    first, _, _ = trained(tmp_path / "first", DATED, date="2026-03-05")
    second, _, base = trained(tmp_path / "second", DATED, date="2026-03-06")
    assert command_line(first, base, "abc") != command_line(second, base, "abc")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "abc", "answer": "d"}) + "\n")
    arguments = [
        "evaluate",
        first,
        second,
        "--data",
        rows,
        "--metrics",
        "exact_match",
        "--max-new-tokens",
        "3",
    ]
    result = CliRunner().invoke(
        build_app(), [*map(str, arguments), "--base", str(tmp_path / "first" / "base")]
    )
    assert result.exit_code == 0, result.output


def test_adapters_with_other_variables_are_not_compared(tmp_path: Path) -> None:
    first, _, _ = trained(tmp_path / "first", SWITCHED, chat_template_kwargs={"quiet": True})
    second, _, _ = trained(tmp_path / "second", SWITCHED)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "abc", "answer": "d"}) + "\n")
    arguments = ["evaluate", first, second, "--data", rows, "--base", tmp_path / "first" / "base"]
    result = CliRunner().invoke(build_app(), [*map(str, arguments)])
    assert result.exit_code == 1
    assert "encoded with different limits, chat templates or chat_template_kwargs" in " ".join(
        result.output.split()
    )


def test_what_cannot_be_read_in_a_manifest_is_the_adapters_fault(tmp_path: Path) -> None:
    directory, _, base = trained(tmp_path, PLAIN)
    path = directory / "adapter" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "encoding_options": {"date": "soon"}}))
    store = AdapterStore(tmp_path / "store")
    store.add(directory / "adapter", name="odd")
    with TestClient(app_of(base, store), base_url="http://localhost") as client:
        body = {"model": "odd", "messages": [{"role": "user", "content": "abc"}], "max_tokens": 3}
        answer = client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "adapter_unusable")
    assert "expected a date such as 2026-01-31, found 'soon'" in answer.json()["error"]["message"]
