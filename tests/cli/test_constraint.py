"""Schemas and expressions given on the command line hold what the base answers."""

import json
from dataclasses import replace

import pytest
import typer
from tests.server.tool_world import save_chat_base

from manytune.cli.constraint import grammar_of
from manytune.data.conversation.conversation import Message
from manytune.data.encoding.encode import Encoder
from manytune.engine.answering import answer_prompts
from manytune.errors import ConfigError, DataError, GrammarError
from manytune.evaluation.answers import Question
from manytune.evaluation.metrics.structured import SchemaValid
from manytune.evaluation.results import Item
from manytune.experiments.constrained import constraint_of, schema_constraint

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_chat_base(tmp_path_factory.mktemp("constraint") / "base", "smollm2")


def answers(base, grammar, **options):
    encoder = Encoder(base.tokenizer, max_length=None)
    prompts = [encoder.prompt_ids([Message("user", text)]) for text in ("a b", "the fox", "what?")]
    return answer_prompts(
        base.model,
        base.tokenizer,
        prompts,
        max_new_tokens=80,
        end_ids=(encoder.end_id,),
        constraint=constraint_of(grammar, base, encoder),
        **options,
    )


def test_every_answer_is_valid_against_the_schema_of_a_file(base, tmp_path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    for answer in answers(base, grammar_of(file, None)):
        assert answer.finished == "stop" and set(json.loads(answer.text)) == {"ok"}


def test_every_answer_matches_the_expression(base) -> None:
    for answer in answers(base, grammar_of(None, "(yes|no), [a-z]{3}")):
        word, _, letters = answer.text.partition(", ")
        assert word in ("yes", "no") and len(letters) == 3 and len(answer.token_ids) > 3


def test_without_either_there_is_no_constraint() -> None:
    assert grammar_of(None, None) is None


def test_both_at_once_are_wrong_usage(tmp_path) -> None:
    with pytest.raises(typer.BadParameter, match="give one of --json-schema and --regex"):
        grammar_of(tmp_path / "schema.json", "a")


@pytest.mark.parametrize(("content", "error"), [("{", DataError), ('{"not": {}}', GrammarError)])
def test_a_file_that_is_no_supported_schema_is_refused_by_its_name(tmp_path, content, error) -> None:
    file = tmp_path / "schema.json"
    file.write_text(content)
    with pytest.raises(error, match=r"schema\.json"):
        grammar_of(file, None)
    with pytest.raises(DataError, match="nowhere"):
        grammar_of(tmp_path / "nowhere.json", None)


def test_beams_are_refused(base) -> None:
    with pytest.raises(ConfigError, match="only the engine holds answers to a schema"):
        answers(base, grammar_of(None, "a"), beams=2)


def test_rows_whose_answers_begin_differently_are_refused_by_their_place(base) -> None:
    encoder = Encoder(base.tokenizer, max_length=None)
    valid = SchemaValid(schema=SCHEMA)
    alike = Question(Item("Hi", ("x",), "chat.jsonl", 1), (), encoder.answers)
    assert schema_constraint(valid, base, encoder, [alike]).start().may_end is False
    other = Question(Item("Hi", ("x",), "chat.jsonl", 2), (), replace(encoder.answers, opening="<think>"))
    with pytest.raises(DataError, match=r"chat\.jsonl:2: its chat_template_kwargs change"):
        schema_constraint(valid, base, encoder, [alike, other])
