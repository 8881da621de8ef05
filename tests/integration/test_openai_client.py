"""The official client needs nothing but the address."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from tests.server.live import live
from tests.server.world import LIMIT, alone, app_of, chat_ids, plain_ids

MODELS = {"base": None, "one": "one", "two": "two"}


@pytest.fixture(scope="module")
def address(base, store):
    with live(app_of(base, store)) as server:
        yield f"http://localhost:{server.port}/v1"


@pytest.fixture
def api(address):
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
        yield client


def asked(model, **more):
    return {
        "model": model,
        "messages": [{"role": "user", "content": "abc"}],
        "max_tokens": LIMIT,
        "temperature": 0,
        **more,
    }


def expected(base, store, model):
    ids = chat_ids(base, "abc") if model == "base" else plain_ids(base, "abc")
    return alone(base, store, MODELS[model], ids)


def test_two_adapters_and_the_base_answer_it_at_once(api, base, store):
    with ThreadPoolExecutor(6) as pool:
        answers = list(
            pool.map(lambda model: api.chat.completions.create(**asked(model)), [*MODELS, *MODELS])
        )
    for model, answer in zip([*MODELS, *MODELS], answers, strict=True):
        assert answer.choices[0].message.content == expected(base, store, model).text
        assert answer.usage.completion_tokens == expected(base, store, model).usage.completion_tokens


def test_it_reads_streams(api, base, store):
    chunks = list(
        api.chat.completions.create(**asked("two", stream=True, stream_options={"include_usage": True}))
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == expected(base, store, "two").text
    assert chunks[-1].usage.total_tokens > 0


def test_it_reads_completions_log_probabilities_and_models(api, base, store):
    completion = api.completions.create(
        model="one", prompt="abc", max_tokens=LIMIT, temperature=0, logprobs=2
    )
    assert completion.choices[0].text == expected(base, store, "one").text
    answer = api.chat.completions.create(**asked("one", logprobs=True, top_logprobs=2))
    tokens = [one.token for one in answer.choices[0].logprobs.content]
    assert tokens == completion.choices[0].logprobs.tokens
    assert [model.id for model in api.models.list()] == list(MODELS)
    assert api.models.retrieve("one").owned_by == "manytune"


def test_it_sends_fields_for_an_adapters_own_template(api, base, store):
    answer = api.chat.completions.create(**asked("one", messages=[], extra_body={"fields": {"text": "abc"}}))
    assert answer.choices[0].message.content == expected(base, store, "one").text


@pytest.mark.parametrize(
    ("body", "error", "code"),
    [
        (asked("three"), openai.NotFoundError, "model_not_found"),
        (
            asked("one", functions=[{"name": "f"}]),
            openai.BadRequestError,
            "unsupported_parameter",
        ),
        (asked("one", temperature=9), openai.BadRequestError, "invalid_value"),
    ],
)
def test_refusals_become_its_exceptions(api, body, error, code):
    with pytest.raises(error) as raised:
        api.chat.completions.create(**body)
    assert raised.value.code == code
