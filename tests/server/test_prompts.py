"""Each adapter is asked in the encoding and through the template that it was trained with."""

import json

import pytest
from starlette.testclient import TestClient
from tests.server.world import CHAT, LIMIT, alone, app_of
from tests.store.adapters_made import make_adapter
from tests.store.peft_made import save_peft

from manytune.data.encoding.encode import Encoder
from manytune.data.records import Record
from manytune.data.templates import PromptTemplate, Segment
from manytune.server.prompts import PromptOptions, Prompts
from manytune.store.store import AdapterStore

PARTS = {"prompt": "sum: {{ text }}", "completion": "{{ answer }}", "system": "be brief"}
OTHER = {"prompt": "ask {{ question }}", "completion": "{{ answer }}"}
RECORD = Record({"text": "abc", "question": "xyz", "answer": "q"}, "rows", 1)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """Adapters whose manifests say how they were trained: with a chat template, without one, and on two tasks."""
    folder = tmp_path_factory.mktemp("trained")
    store = AdapterStore(folder / "store")
    for seed, (name, changes) in enumerate(
        {
            "chatty": {"encoding": "chat", "template": PARTS},
            "plain": {"encoding": "plain", "template": PARTS},
            "both": {"encoding": "chat", "template": None, "templates": {"sums": PARTS, "asks": OTHER}},
        }.items()
    ):
        made = make_adapter(folder / name, base, seed=seed)
        manifest = json.loads((made / "manifest.json").read_text())
        (made / "manifest.json").write_text(json.dumps({**manifest, **changes}))
        store.add(made, name=name)
    with TestClient(app_of(base, store), base_url="http://localhost") as client:
        yield client, store


def ask(client, **body):
    response = client.post("/v1/chat/completions", json={"max_tokens": LIMIT, "temperature": 0, **body})
    return response.json()


@pytest.mark.parametrize(
    ("name", "chat", "task", "parts"),
    [
        ("chatty", True, None, PARTS),
        ("plain", False, None, PARTS),
        ("both", True, "sums", PARTS),
        ("both", True, "asks", OTHER),
    ],
)
def test_fields_give_the_tokens_of_training(trained, base, name, chat, task, parts):
    client, store = trained
    assert base.tokenizer.chat_template == CHAT
    example = PromptTemplate.from_dict(parts).render(RECORD)
    ids = Encoder(base.tokenizer, max_length=None, chat=chat).encode(example).prompt_ids
    more = {} if task is None else {"task": task}
    answer = ask(client, model=name, fields={"text": "abc", "question": "xyz"}, **more)
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert answer["choices"][0]["message"]["content"] == alone(base, store, name, ids).text


def test_messages_are_encoded_as_in_training_without_the_template(trained, base):
    client, store = trained
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "sum: abc"}]
    example = PromptTemplate.from_dict(PARTS).render(RECORD)
    for name, chat in (("chatty", True), ("plain", False)):
        ids = Encoder(base.tokenizer, max_length=None, chat=chat).encode(example).prompt_ids
        answer = ask(client, model=name, messages=messages)
        assert answer["choices"][0]["message"]["content"] == alone(base, store, name, ids).text


def test_a_task_must_be_one_of_the_adapters(trained):
    client, _ = trained
    for body, message in (
        ({"model": "both"}, "set task to one of sums, asks."),
        ({"model": "both", "task": "tells"}, "not 'tells'"),
        ({"model": "plain", "task": "sums"}, "leave task out"),
    ):
        error = ask(client, fields={"text": "abc"}, **body)["error"]
        assert message in error["message"] and error["param"] == "task"


def test_models_lists_fields_and_tasks(trained):
    client, _ = trained
    both = client.get("/v1/models/both").json()
    assert both["fields"] == ["question", "text"] and both["tasks"] == ["sums", "asks"]


def test_encoders_for_requests_own_variables_are_kept_in_bounds(base):
    prompts = Prompts(base, max_chars=100)
    prompts._tokenizer.chat_template = "{{ mood }}" + CHAT
    segments = [Segment("user", "a")]
    moods = [PromptOptions(kwargs={"mood": "x" * n}) for n in range(200)]
    lengths = {len(prompts.conversation(segments, None, one).tokens) for one in moods}
    assert len(lengths) == 200
    assert len(prompts._encoders) <= 64


OWN = (
    "{% for m in messages %}{{ 'q' if m.role == 'user' else 'a' }}{{ m.content }}<unk>{% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)


def test_an_adapter_with_a_chat_template_of_its_own_is_asked_with_it_and_the_base_is_not(base, tmp_path):
    made = save_peft(tmp_path / "made")
    (made / "chat_template.jinja").write_text(OWN)
    store = AdapterStore(tmp_path / "store")
    entry = store.add(made, name="own", base=base)
    store.add(made, name="other", base=base, base_tokenizer=True)
    messages = [Segment("user", "hi")]
    prompts = Prompts(base, max_chars=100)
    prompt = prompts.conversation(messages, entry.manifest, PromptOptions())
    assert prompt.tokens == tuple(base.tokenizer.convert_tokens_to_ids(["q", "h", "i", "<unk>", "a"]))
    end = base.tokenizer.convert_tokens_to_ids("<unk>")
    assert prompt.end_id == end  # which no answer of the base's ends with
    assert prompts.conversation(messages, None, PromptOptions()).end_id is None
    with TestClient(app_of(base, store), base_url="http://localhost") as client:
        sent = [{"role": "user", "content": "hi"}]
        tokens = {name: ask(client, model=name, messages=sent) for name in ("own", "other", "base")}
    counts = {name: answer["usage"]["prompt_tokens"] for name, answer in tokens.items()}
    assert counts["own"] == 5
    assert (
        counts["other"]
        == counts["base"]
        == len(Encoder(base.tokenizer, max_length=None).prompt_ids(messages))
    )
