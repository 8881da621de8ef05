"""`echo` gives the log likelihoods of given texts, as lm-eval's `local-completions` asks for them and reads them."""

import copy
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter

import openai
import peft
import pytest
import torch
from starlette.testclient import TestClient
from tests.server.live import live
from tests.server.world import alone, app_of, plain_ids

from manytune.engine.options import EngineOptions
from manytune.server.app import create_app
from manytune.server.settings import Settings

MODELS = {"base": None, "one": "one", "two": "two"}
# Context and continuation, some with a common context, as the choices of a question have.
REQUESTS = [
    ("the cat sat on a", "mat"),
    ("the cat sat on a", "dog"),
    ("x", "yz"),
    ("hello there you", "a"),
    ("ab", "c"),
]


@pytest.fixture(scope="module", params=["plain", "with a prefix cache and short chunks"])
def client(request, base, store):
    options = EngineOptions(max_batch=8, weights="plain")
    if request.param != "plain":
        options = EngineOptions(max_batch=8, weights="plain", prefix_cache_tokens=512, prefill_chunk=5)
    app = create_app(base, store, Settings(base_name="base", watch_seconds=3600.0), None, options)
    with TestClient(app, base_url="http://localhost") as client:
        yield client


@pytest.fixture(scope="module")
def systems(base, store):
    """The base and its adapters, by transformers and HF PEFT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # HF PEFT's, of transformers' names
        return {
            model: copy.deepcopy(base.model)
            if name is None
            else peft.PeftModel.from_pretrained(copy.deepcopy(base.model), str(store.path(name)))
            for model, name in MODELS.items()
        }


@pytest.fixture(scope="module")
def reference(systems):
    """Log likelihood of a continuation and whether it is the greedy one, by transformers and HF PEFT."""

    @torch.no_grad()
    def of(model, context, continuation):
        logits = systems[model](torch.tensor([[*context, *continuation]])).logits[0]
        log = logits.log_softmax(1)[len(context) - 1 : -1]
        own = log.gather(1, torch.tensor(continuation)[:, None])[:, 0]
        return float(own.sum()), bool((log.argmax(1) == torch.tensor(continuation)).all())

    return of


def parse(outputs, context_lengths):
    """What lm-eval's `LocalCompletionsAPI` makes of responses: the last token is the generated one, and is left out."""
    found = []
    for out in outputs if isinstance(outputs, list) else [outputs]:
        choices = sorted(out["choices"], key=itemgetter("index"))
        for choice, length in zip(choices, context_lengths, strict=True):
            scores = choice["logprobs"]["token_logprobs"][length:-1]
            tops = choice["logprobs"]["top_logprobs"][length:-1]
            greedy = all(score == max(top.values()) for score, top in zip(scores, tops, strict=True))
            found.append((sum(scores), greedy))
    return found


def payload(model, prompts, **more):
    return {
        "model": model,
        "prompt": prompts,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
        **more,
    }


def encoded(base):
    """The requests as tokens."""
    return [(list(plain_ids(base, a)), list(plain_ids(base, b))) for a, b in REQUESTS]


def greedy_pair(base, store, model):
    """A context and the continuation that a model finds likeliest."""
    context = plain_ids(base, "abc")
    answer = alone(base, store, MODELS[model], context, max_new_tokens=4, ignore_eos=True)
    return list(context), list(answer.token_ids)


@pytest.mark.parametrize("model", MODELS)
def test_lm_eval_gets_transformers_log_likelihoods(client, base, store, reference, model):
    pairs = [*encoded(base), greedy_pair(base, store, model)]
    body = payload(model, [context + continuation for context, continuation in pairs])
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    found = parse(response.json(), [len(context) for context, _ in pairs])
    for (score, greedy), (context, continuation) in zip(found, pairs, strict=True):
        expected, is_greedy = reference(model, context, continuation)
        assert score == pytest.approx(expected, abs=1e-5, rel=1e-5)
        assert greedy == is_greedy
    assert found[-1][1], "the model's own answer is the likeliest"


def test_all_models_are_scored_at_once_next_to_answers_and_again_from_the_cache(client, base, reference):
    pairs = encoded(base)
    jobs = [(model, *pair) for model in MODELS for pair in pairs] * 2

    def score(job):
        model, context, continuation = job
        writes = {"model": model, "prompt": "the cat sat on a", "max_tokens": 6}
        assert client.post("/v1/completions", json=writes).status_code == 200
        response = client.post("/v1/completions", json=payload(model, [context + continuation]))
        return parse(response.json(), [len(context)])[0]

    with ThreadPoolExecutor(8) as pool:
        for job, (score_found, greedy) in zip(jobs, pool.map(score, jobs), strict=True):
            expected, is_greedy = reference(*job)
            assert (score_found, greedy) == (pytest.approx(expected, abs=1e-5, rel=1e-5), is_greedy)


@pytest.mark.parametrize("ends", [False, True])
def test_the_generated_token_has_an_entry_also_if_it_ends_the_answer(client, base, ends):
    bias = {"0": 100} if ends else {"0": -100}
    body = payload("base", [list(plain_ids(base, "abc"))], logit_bias=bias)
    (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    assert {name: len(values) for name, values in choice["logprobs"].items()} == {
        "tokens": 4,
        "token_logprobs": 4,
        "top_logprobs": 4,
        "text_offset": 4,
    }


@pytest.mark.parametrize("model", MODELS)
def test_without_a_token_to_generate_the_prompt_alone_is_scored(client, base, reference, model):
    ids = list(plain_ids(base, "hello"))
    body = payload(model, ids, max_tokens=0)
    answer = client.post("/v1/completions", json=body).json()
    (choice,) = answer["choices"]
    entries = choice["logprobs"]
    assert entries["token_logprobs"][0] is None and entries["top_logprobs"][0] is None
    assert sum(entries["token_logprobs"][1:]) == pytest.approx(
        reference(model, ids[:1], ids[1:])[0], abs=1e-5
    )
    assert [token.strip() for token in entries["tokens"]] == list("hello")
    assert "".join(entries["tokens"]) == choice["text"]
    assert (choice["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 0)


def test_a_prompt_is_repeated_as_it_was_sent(client):
    for prompt in ("hello", "  a  b"):
        body = {"model": "one", "prompt": prompt, "max_tokens": 3, "temperature": 0}
        plain = client.post("/v1/completions", json=body).json()["choices"][0]
        echoed = client.post("/v1/completions", json={**body, "echo": True}).json()["choices"][0]
        # This tokenizer writes a space before every token but a text's first.
        assert echoed == {**plain, "text": f"{prompt} {plain['text']}"}
        nothing = client.post("/v1/completions", json={**body, "echo": True, "max_tokens": 0}).json()
        assert (nothing["choices"][0]["text"], nothing["choices"][0]["logprobs"]) == (prompt, None)


def test_a_stream_begins_with_the_prompt(client):
    body = payload("two", ["abc", "hello"], max_tokens=5, n=2, temperature=1)
    whole = client.post("/v1/completions", json=body).json()["choices"]
    lines = client.post("/v1/completions", json={**body, "stream": True}).text.split("\n\n")
    chunks = [json.loads(line[6:])["choices"][0] for line in lines if line and "[DONE]" not in line]
    for choice in whole:
        mine = [chunk for chunk in chunks if chunk["index"] == choice["index"]]
        assert "".join(chunk["text"] for chunk in mine) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert [one for chunk in mine if chunk["logprobs"] for one in chunk["logprobs"][name]] == values
        assert mine[-1]["finish_reason"] == choice["finish_reason"]


def test_no_tokens_without_echo_are_refused(client):
    error = client.post("/v1/completions", json={"model": "base", "prompt": "a", "max_tokens": 0}).json()[
        "error"
    ]
    assert error["message"] == "max_tokens: expected 1 or more without echo, found 0."
    assert error["param"] == "max_tokens"


def test_the_official_client_reads_them(base, store):
    with (
        live(app_of(base, store)) as server,
        openai.OpenAI(base_url=f"http://localhost:{server.port}/v1", api_key="none", max_retries=0) as api,
    ):
        answer = api.completions.create(model="one", prompt="abc", max_tokens=0, echo=True, logprobs=2)
    assert answer.choices[0].text == "abc"
    assert answer.choices[0].logprobs.token_logprobs[0] is None
    assert len(answer.choices[0].logprobs.tokens) == 3
