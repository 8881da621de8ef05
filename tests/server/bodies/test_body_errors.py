"""A body that can't be used is refused in one sentence: the field, what was expected of it and what was found."""

import pytest

MESSAGES = [{"role": "user", "content": "a"}]
CHAT = ("/v1/chat/completions", {"model": "base", "messages": MESSAGES, "max_tokens": 2})
TEXT = ("/v1/completions", {"model": "base", "prompt": "a", "max_tokens": 2})
COMPARE = ("/v1/compare", {"models": ["base"], "messages": MESSAGES, "max_tokens": 2})
EMBED = ("/v1/embeddings", {"model": "base", "input": "a"})

STOPS = "a string or a list of up to 4 strings"
PROMPTS = "a string, a list of tokens, or a list of strings or of such lists"
PARTS = "a part of type 'text', as this server reads nothing else"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}


def part(given):
    return [{"role": "user", "content": [{"type": "text", "text": "a"}, given]}]


CASES = [
    # unions
    (CHAT, "stop", ["a"] * 5, "stop", "stop: expected 4 entries at most, found 5."),
    (CHAT, "stop", 3, "stop", f"stop: expected {STOPS}, found 3."),
    (CHAT, "stop", {"a": 1}, "stop", f"stop: expected {STOPS}, found an object."),
    (CHAT, "stop", ["a", 3], "stop.1", "stop.1: expected a string, found 3."),
    (CHAT, "stop", ["a", None], "stop.1", "stop.1: expected a string, found null."),
    (CHAT, "stop", "", "stop", "stop: expected 1 or more characters, found an empty string."),
    (CHAT, "stop", ["a", ""], "stop.1", "stop.1: expected 1 or more characters, found an empty string."),
    (CHAT, "stop", "a" * 300, "stop", "stop: expected 200 characters at most, found 300."),
    (TEXT, "prompt", 3, "prompt", f"prompt: expected {PROMPTS}, found 3."),
    (TEXT, "prompt", [], "prompt", f"prompt: expected {PROMPTS}, found an empty list."),
    (
        TEXT,
        "prompt",
        [True],
        "prompt",
        f"prompt: expected {PROMPTS}, found a list of 1 that begins with true.",
    ),
    (TEXT, "prompt", [1.5], "prompt", f"prompt: expected {PROMPTS}, found a list of 1 that begins with 1.5."),
    (TEXT, "prompt", ["a", 1], "prompt.1", "prompt.1: expected a string, found 1."),
    (TEXT, "prompt", [1, "a"], "prompt.1", "prompt.1: expected an integer, found 'a'."),
    (TEXT, "prompt", [[1], "a"], "prompt.1", "prompt.1: expected a list, found 'a'."),
    (TEXT, "prompt", [[1], [2, "a"]], "prompt.1.1", "prompt.1.1: expected an integer, found 'a'."),
    (EMBED, "input", {"a": 1}, "input", f"input: expected {PROMPTS}, found an object."),
    (EMBED, "input", ["a", None], "input.1", "input.1: expected a string, found null."),
    (
        CHAT,
        "messages",
        part(IMAGE),
        "messages.0.content.1",
        f"expected {PARTS}, found one of type 'image_url'.",
    ),
    (
        CHAT,
        "messages",
        part(AUDIO),
        "messages.0.content.1",
        f"expected {PARTS}, found one of type 'input_audio'.",
    ),
    (CHAT, "messages", part({"type": "text"}), "messages.0.content.1.text", "is missing."),
    (CHAT, "messages", part("a"), "messages.0.content.1", "expected an object, found 'a'."),
    (
        CHAT,
        "messages",
        [{"role": "user", "content": 3}],
        "messages.0.content",
        "messages.0.content: expected a string or a list of parts, found 3.",
    ),
    # other fields
    (CHAT, "messages", ["a"], "messages.0", "messages.0: expected an object, found 'a'."),
    (CHAT, "messages", "a", "messages", "messages: expected a list, found 'a'."),
    (CHAT, "messages", [{"role": "user"}], "messages.0.content", "messages.0.content is missing."),
    (
        CHAT,
        "messages",
        [{"role": "function", "content": "a"}],
        "messages.0.role",
        "messages.0.role: expected 'system', 'developer', 'user', 'assistant' or 'tool', found 'function'.",
    ),
    (COMPARE, "models", [], "models", "models: expected 1 or more entries, found an empty list."),
    (COMPARE, "models", "base", "models", "models: expected a list, found 'base'."),
    (COMPARE, "models", ["base", 3], "models.1", "models.1: expected a string, found 3."),
    (CHAT, "n", 0, "n", "n: expected 1 or more, found 0."),
    (CHAT, "n", "2", "n", "n: expected an integer, found '2'."),
    (CHAT, "n", 1.5, "n", "n: expected an integer, found 1.5."),
    (CHAT, "n", True, "n", "n: expected an integer, found true."),
    (CHAT, "temperature", "0", "temperature", "temperature: expected a number, found '0'."),
    (CHAT, "temperature", 3, "temperature", "temperature: expected 2.0 or less, found 3."),
    (CHAT, "top_p", 0, "top_p", "top_p: expected more than 0.0, found 0."),
    (CHAT, "stream", "yes", "stream", "stream: expected true or false, found 'yes'."),
    (CHAT, "seed", 2**63, "seed", f"seed: expected less than {2**63}, found {2**63}."),
    (CHAT, "logprobs", 3, "logprobs", "logprobs: expected true or false, found 3."),
    (
        CHAT,
        "logit_bias",
        [1],
        "logit_bias",
        "logit_bias: expected an object, found a list of 1 that begins with 1.",
    ),
    (CHAT, "logit_bias", {"5": "a"}, "logit_bias.5", "logit_bias.5: expected a number, found 'a'."),
    (
        CHAT,
        "logit_bias",
        {"99": 1},
        "logit_bias",
        "logit_bias contains token 99; expected tokens from 0 to 28.",
    ),
    (CHAT, "stream_options", 3, "stream_options", "stream_options: expected an object, found 3."),
    (CHAT, "user", "a" * 300, "user", "user: expected 200 characters at most, found 300."),
    (CHAT, "model", None, "model", "model is missing."),
    (TEXT, "logprobs", True, "logprobs", "logprobs: expected an integer, found true."),
    (TEXT, "logprobs", 6, "logprobs", "logprobs: expected 5 or less, found 6."),
    (TEXT, "prompt", [1, 99], "prompt", "prompt contains token 99; expected tokens from 0 to 28."),
    (TEXT, "prompt", [-1], "prompt", "prompt contains token -1; expected tokens from 0 to 28."),
    (
        TEXT,
        "prompt",
        [[]],
        "prompt",
        "the prompt has no tokens; a model needs at least one to continue from.",
    ),
    (EMBED, "dimensions", 0, "dimensions", "dimensions: expected 1 or more, found 0."),
    (EMBED, "encoding_format", "hex", "encoding_format", "expected 'float' or 'base64', found 'hex'."),
    # fields that say together how much is wanted
    (
        TEXT,
        "prompt",
        ["a"] * 17,
        "prompt",
        "prompt asks for more than 16 answers, which is this server's limit",
    ),
    (COMPARE, "models", [f"m{at}" for at in range(17)], "models", "models asks for more than 16 answers"),
    (CHAT, "n", 17, "n", "n asks for more than 16 answers"),
]


@pytest.mark.parametrize(("route", "field", "value", "param", "message"), CASES)
def test_the_message_names_the_field_what_was_expected_and_what_was_found(
    client, route, field, value, param, message
):
    path, body = route
    error = client.post(path, json={**body, field: value}).json()["error"]
    assert message in error["message"]
    assert error["message"].startswith((param, "the prompt")) and error["param"] == param
    assert error["message"].count(". ") == 0, "one sentence"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_the_limit_that_was_sent_is_the_one_to_blame(client, field):
    path, _ = CHAT
    asked = {"model": "base", "messages": MESSAGES}
    for value, message in (
        (0, f"{field}: expected 1 or more, found 0."),
        ("a", f"{field}: expected an integer, found 'a'."),
        (50, f"{field} is 50; this server allows at most 40."),
    ):
        error = client.post(path, json={**asked, field: value}).json()["error"]
        assert (error["message"], error["param"]) == (message, field)
    long = {"model": "base", "messages": [{"role": "user", "content": "a" * 30}], field: 40}
    error = client.post(path, json=long).json()["error"]
    assert f"and {field} is 40, but the model has 64 positions" in error["message"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", field)


def test_a_prompt_that_is_too_long_blames_no_limit(client):
    error = client.post("/v1/completions", json={"model": "base", "prompt": "a" * 65}).json()["error"]
    assert error["message"] == "the prompt has 65 tokens, but the model has 64 positions; shorten the prompt."
    assert error["code"] == "context_length_exceeded"
