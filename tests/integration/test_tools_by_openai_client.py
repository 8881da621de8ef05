"""The official client calls tools, answers them and parses structured answers, whole and streamed.

The bases have random weights, so whatever is valid in their answers is what the constraints made valid.
"""

import json
from typing import Literal

import openai
import pytest
from openai import pydantic_function_tool
from pydantic import BaseModel, Field
from tests.chat_templates import FAMILIES
from tests.random_cases import some
from tests.server.live import live
from tests.server.tool_world import CLOCK, WEATHER, app_of_base, save_chat_base

from manytune.data.conversation.conversation import Message, ToolCall
from manytune.data.encoding.encode import Encoder
from manytune.data.templates import Example

TOOLS = [WEATHER, CLOCK]
QUESTION = {"role": "user", "content": "Will it rain in Oslo?"}
WITH_TOOLS = ["smollm2", "llama3", "qwen3-no-thinking", "mistral"]


class Place(BaseModel):
    city: Literal["Oslo", "Rome"]
    code: str = Field(pattern="^[A-Z]{2}[0-9]{3}$")


class Trip(BaseModel):
    """A model within a model, a list and an option."""

    start: Place
    days: int = Field(ge=1, le=30)
    stops: list[Place] = Field(max_length=2)
    note: Literal["late", "early"] | None


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server of each family, started when it is asked for."""
    running: dict[str, tuple] = {}

    def start(family: str):
        if family not in running:
            directory = tmp_path_factory.mktemp(family)
            base = save_chat_base(directory / "base", family)
            server = live(app_of_base(base, directory))
            address = f"http://localhost:{server.__enter__().port}/v1"
            client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
            running[family] = (server, client, base)
        return running[family][1:]

    yield start
    for server, client, _ in running.values():
        client.close()
        server.__exit__(None, None, None)


def options(family: str, **more):
    body = {"chat_template_kwargs": FAMILIES[family].options, **more.pop("extra_body", {})}
    return {"model": "base", "messages": [QUESTION], "max_tokens": 400, "seed": 1, "extra_body": body, **more}


def check_call(call) -> None:
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        assert arguments["city"] in ("Oslo", "Rome") and 0 <= arguments["days"] <= 9
    else:
        assert (call.function.name, arguments) == ("clock", {})


@pytest.mark.parametrize("family", WITH_TOOLS)
def test_a_tool_is_called_answered_and_the_answer_answered(served, family: str) -> None:
    api, base = served(family)
    first = api.chat.completions.create(
        **options(family, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    )
    (choice,) = first.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    check_call(call)
    messages = [QUESTION, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "Sun."}]
    final = api.chat.completions.create(
        **options(family, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=16)
    )
    assert final.choices[0].message.tool_calls is None and final.choices[0].message.content
    # The prompt of the second turn is, token for token, what training would see.
    encoder = Encoder(base.tokenizer, max_length=None, chat_template_kwargs=FAMILIES[family].options)
    called = ToolCall(call.function.name, call.function.arguments, call.id)
    said = Message("assistant", "", tool_calls=(called,))
    answered = Message("tool", "Sun.", name=call.function.name, tool_call_id=call.id)
    example = Example(
        (Message("user", QUESTION["content"]), said, answered), "Fine.", "x", 1, tools=tuple(TOOLS)
    )
    assert final.usage.prompt_tokens == len(encoder.encode(example).prompt_ids)


@pytest.mark.parametrize("family", WITH_TOOLS)
def test_a_stream_has_the_same_calls_in_deltas(served, family: str) -> None:
    api, _ = served(family)
    asked = options(family, tools=TOOLS, tool_choice="required", seed=3)
    whole = api.chat.completions.create(**asked).choices[0]
    calls: list[dict] = []
    reasons, text = [], ""
    for chunk in api.chat.completions.create(**asked, stream=True):
        delta = chunk.choices[0].delta
        text += delta.content or ""
        reasons.append(chunk.choices[0].finish_reason)
        for new in delta.tool_calls or []:
            if new.index == len(calls):
                assert new.id and new.type == "function" and new.function.name
                calls.append({"name": new.function.name, "arguments": new.function.arguments, "pieces": 1})
            else:
                assert new.index == len(calls) - 1 and new.id is None and new.function.name is None
                calls[-1]["arguments"] += new.function.arguments
                calls[-1]["pieces"] += 1
    assert [(one["name"], one["arguments"]) for one in calls] == [
        (one.function.name, one.function.arguments) for one in whole.message.tool_calls
    ]
    assert max(one["pieces"] for one in calls) > 1 or all(one["arguments"] == "{}" for one in calls)
    assert text == (whole.message.content or "")
    assert reasons[-1] == whole.finish_reason and set(reasons[:-1]) == {None}


def test_a_certain_function_is_called(served) -> None:
    api, _ = served("smollm2")
    chosen = {"type": "function", "function": {"name": "get_weather"}}
    for seed in range(3):
        answer = api.chat.completions.create(**options("smollm2", tools=TOOLS, tool_choice=chosen, seed=seed))
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.name == "get_weather"
        check_call(call)


def test_each_of_several_answers_has_its_own_calls(served) -> None:
    api, _ = served("smollm2")
    answer = api.chat.completions.create(
        **options("smollm2", tools=TOOLS, tool_choice="required", parallel_tool_calls=False, n=3)
    )
    calls = [choice.message.tool_calls[0] for choice in answer.choices]
    assert len({call.id for call in calls}) == 3
    for call in calls:
        check_call(call)


@pytest.mark.parametrize(
    "family", some(["smollm2", "llama3", "gemma", "qwen3-no-thinking"], "smollm2", "gemma")
)
def test_the_client_parses_an_answer_into_a_pydantic_model(served, family: str) -> None:
    api, _ = served(family)
    for seed in range(3):
        found = api.chat.completions.parse(**options(family, response_format=Trip, seed=seed))
        trip = found.choices[0].message.parsed
        assert isinstance(trip, Trip) and len(trip.stops) <= 2


def test_the_client_parses_the_arguments_of_a_strict_tool(served) -> None:
    api, _ = served("smollm2")
    tools = [pydantic_function_tool(Place)]
    found = api.chat.completions.parse(**options("smollm2", tools=tools, tool_choice="required"))
    for call in found.choices[0].message.tool_calls:
        assert isinstance(call.function.parsed_arguments, Place)
    again = [QUESTION, found.choices[0].message]  # the client sends back what it has parsed
    answers = [
        {"role": "tool", "tool_call_id": c.id, "content": "ok"} for c in found.choices[0].message.tool_calls
    ]
    asked = options("smollm2", messages=again + answers, tools=tools, max_tokens=4)
    assert api.chat.completions.create(**asked).usage.completion_tokens > 0


def test_the_client_streams_a_parsed_answer(served) -> None:
    api, _ = served("smollm2")
    with api.chat.completions.stream(**options("smollm2", response_format=Place)) as stream:
        found = stream.get_final_completion()
    assert isinstance(found.choices[0].message.parsed, Place)


def test_json_objects_regular_expressions_and_grammars(served) -> None:
    api, _ = served("smollm2")

    def ask(**more) -> str:
        choice = api.chat.completions.create(**options("smollm2", **more)).choices[0]
        assert choice.finish_reason == "stop"
        return choice.message.content

    eager = {
        str(token): 30 for token in (17, 93)
    }  # the quotation mark and the brace, so that it comes to an end
    assert isinstance(json.loads(ask(response_format={"type": "json_object"}, logit_bias=eager)), dict)
    assert ask(extra_body={"regex": "(yes|no)!{1,3}"}).rstrip("!") in ("yes", "no")
    assert (
        ask(extra_body={"grammar": 'start: "(" start ")" | "x"\n', "top_k": 1}, logit_bias={"88": 30}).strip(
            "()"
        )
        == "x"
    )


def test_an_answer_is_continued(served) -> None:
    api, base = served("smollm2")
    messages = [QUESTION, {"role": "assistant", "content": "The answer is"}]
    asked = options(
        "smollm2", messages=messages, extra_body={"continue_final_message": True, "regex": " (yes|no)"}
    )
    answer = api.chat.completions.create(**asked)
    assert answer.choices[0].message.content in (" yes", " no")
    encoder = Encoder(base.tokenizer, max_length=None)
    begun = encoder.begun_ids([Message("user", QUESTION["content"]), Message("assistant", "The answer is")])
    assert answer.usage.prompt_tokens == len(begun)


def test_stop_tokens_and_special_tokens(served) -> None:
    api, base = served("smollm2")
    mark = base.tokenizer.convert_tokens_to_ids("<|im_start|>")
    eager = {"logit_bias": {str(mark): 100}, "max_tokens": 3}
    kept, skipped = (
        api.chat.completions.create(**options("smollm2", **eager, extra_body={"skip_special_tokens": skip}))
        for skip in (False, True)
    )
    assert kept.choices[0].message.content == "<|im_start|>" * 3
    assert skipped.choices[0].message.content == "" and skipped.usage.completion_tokens == 3
    stopped = api.chat.completions.create(
        **options("smollm2", **eager, extra_body={"stop_token_ids": [mark]})
    )
    choice = stopped.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("", "stop")


def test_completions_take_expressions_and_grammars_too(served) -> None:
    api, _ = served("smollm2")
    answer = api.completions.create(
        model="base", prompt=["a", "b"], max_tokens=20, extra_body={"regex": "[0-9]{3}"}, seed=1
    )
    assert all(choice.text.isdigit() and len(choice.text) == 3 for choice in answer.choices)


@pytest.mark.parametrize(
    ("more", "param", "message"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
            "response_format",
            "response_format.json_schema.schema: the keyword 'not' isn't supported; leave it out.",
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"if": {}}}}],
                "tool_choice": "required",
            },
            "tools",
            "tools.0.function.parameters: the keyword 'if' isn't supported; leave it out.",
        ),
        (
            {"extra_body": {"regex": "(a"}},
            "regex",
            'regex: invalid regex "(a" (in regex): regex parse error: (unclosed',
        ),
        ({"extra_body": {"grammar": "start: b"}}, "grammar", 'grammar: unknown name: "b".'),
        (
            {"extra_body": {"stop_token_ids": [99999]}},
            "stop_token_ids",
            "stop_token_ids contains token 99999;",
        ),
    ],
)
def test_what_can_not_be_done_is_refused_in_one_sentence(
    served, more: dict, param: str, message: str
) -> None:
    api, _ = served("smollm2")
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(**options("smollm2", **more))
    assert caught.value.body["message"].startswith(message) and caught.value.body["param"] == param


def test_tools_of_a_template_that_writes_calls_in_an_unknown_form_are_refused(served, tmp_path) -> None:
    directory = tmp_path
    base = save_chat_base(directory / "base", "qwen3")
    base.tokenizer.chat_template = FAMILIES["qwen3"].template.replace("<tool_call>", "<call it>")
    with live(app_of_base(base, directory)) as server:
        address = f"http://localhost:{server.port}/v1"
        with (
            openai.OpenAI(base_url=address, api_key="none", max_retries=0) as api,
            pytest.raises(
                openai.BadRequestError, match="writes tool calls in a form that this server can't read"
            ),
        ):
            api.chat.completions.create(**options("smollm2", tools=TOOLS))
