"""An encoder-decoder's adapters over HTTP, with the official client: each answer is transformers' with that adapter."""

import re
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from starlette.testclient import TestClient
from tests.reference.single_adapter import answer
from tests.server.live import live
from tests.server.world import app_of
from tests.store.adapters_made import make_adapter
from tests.store.tiny import LETTERS, tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from manytune.model.peft_model import PeftModel
from manytune.store.base import load_base
from manytune.store.store import AdapterStore

END, LIMIT = 0, 7
MODELS = ("base", "lora", "ia3", "prefix")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("served") / "t5"
    config = T5Config(
        vocab_size=len(LETTERS) + 3,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        eos_token_id=END,
        pad_token_id=1,
        decoder_start_token_id=1,
        initializer_factor=2.5,
    )
    T5ForConditionalGeneration(config).save_pretrained(directory)
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", END)]
    )
    tokenizer.save_pretrained(directory)
    return load_base(str(directory))


@pytest.fixture(scope="module")
def store(base, tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapters")
    store = AdapterStore(directory / "store")
    made = {
        "lora": {"method": "lora", "target_modules": ["q", "v", "wo"]},
        "ia3": {"method": "ia3", "target_modules": ["k", "v", "wo"], "feedforward_modules": ["wo"]},
        "prefix": {"method": "prefix-tuning", "num_virtual_tokens": 3},
    }
    for seed, (name, options) in enumerate(made.items()):
        store.add(make_adapter(directory / name, base, seed=seed, **options), name=name)
    return store


@pytest.fixture(scope="module")
def expected(base, store):
    """What transformers answers with each adapter attached, to `abc` as the encoder reads it."""
    ids = (*(3 + LETTERS.index(letter) for letter in "abc"), END)
    found = {}
    for name in MODELS:
        fresh = load_base(base.name).model
        model = fresh if name == "base" else PeftModel.from_pretrained(fresh, store.path(name)).eval()
        tokens, logprobs = answer(model, ids, max_new_tokens=LIMIT, end_id=END)
        kept = tokens[:-1] if tokens[-1] == END else tokens
        found[name] = base.tokenizer.decode(kept), tokens, logprobs
    assert len({text for text, _, _ in found.values()}) > 2, "adapters change the answers"
    return found


@pytest.fixture(scope="module")
def api(base, store):
    with (
        live(app_of(base, store)) as server,
        openai.OpenAI(base_url=f"http://localhost:{server.port}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def chat(model="lora", text="abc", **more):
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "max_tokens": LIMIT, "temperature": 0, **more}


def test_the_base_and_adapters_of_several_methods_complete_at_once(api, expected):
    def complete(model):
        return api.completions.create(model=model, prompt="abc", max_tokens=LIMIT, temperature=0, logprobs=1)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(complete, [*MODELS, *MODELS]))
    for model, one in zip([*MODELS, *MODELS], found, strict=True):
        text, tokens, logprobs = expected[model]
        assert one.choices[0].text == text
        values = [float(row[token]) for row, token in zip(logprobs, tokens, strict=True)]
        assert one.choices[0].logprobs.token_logprobs == pytest.approx(values, abs=1e-5)
        assert one.usage.prompt_tokens == 4, "the end token is the encoder's, too"


def test_fields_and_messages_reach_the_encoder_as_in_training(api, expected):
    by_fields = chat(extra_body={"fields": {"text": "abc"}})
    del by_fields["messages"]
    for body in (chat(), by_fields):
        if "messages" not in body:
            body["messages"] = openai.NOT_GIVEN
        assert api.chat.completions.create(**body).choices[0].message.content == expected["lora"][0]


def test_answers_are_streamed_stopped_and_drawn_by_seed(api, expected):
    text = expected["lora"][0]
    chunks = list(
        api.completions.create(model="lora", prompt="abc", max_tokens=LIMIT, temperature=0, stream=True)
    )
    assert len(chunks) > 2 and "".join(chunk.choices[0].text for chunk in chunks) == text
    cut = text[-4:]
    stopped = api.completions.create(model="lora", prompt="abc", max_tokens=LIMIT, temperature=0, stop=cut)
    assert stopped.choices[0].text == text[: text.index(cut)] and stopped.choices[0].finish_reason == "stop"
    drawn = [
        api.completions.create(model="ia3", prompt="abc", max_tokens=LIMIT, temperature=2, n=2, seed=seed)
        for seed in (5, 5, 6)
    ]
    texts = [[choice.text for choice in one.choices] for one in drawn]
    assert texts[0] == texts[1] != texts[2] and len(set(texts[0])) == 2


def test_an_answer_keeps_to_an_expression(api):
    found = api.completions.create(
        model="lora", prompt="abc", max_tokens=LIMIT, temperature=0, extra_body={"regex": "( ?[xyz]){3}"}
    )
    assert re.fullmatch("[xyz]( [xyz]){2}", found.choices[0].text)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (
            "chat",
            {
                "model": "lora",
                "messages": [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "x"}],
                "extra_body": {"continue_final_message": True},
            },
            "all messages go to its encoder",
        ),
        (
            "completions",
            {"model": "lora", "prompt": "abc", "echo": True, "logprobs": 1},
            "gives no log probabilities of its prompt",
        ),
    ],
)
def test_what_an_encoder_decoder_cannot_do_is_refused(api, path, body, message):
    call = api.chat.completions if path == "chat" else api.completions
    with pytest.raises(openai.BadRequestError, match=message):
        call.create(**body)


def test_a_forced_beginning_is_no_part_of_an_answers_text(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <end>", special_tokens=[("<s>", begin), ("<end>", END)]
    )
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=12,
        bos_token_id=begin,
        eos_token_id=END,
        pad_token_id=1,
        decoder_start_token_id=END,
        forced_eos_token_id=None,
        init_std=0.5,
    )
    model = BartForConditionalGeneration(config)
    model.generation_config.forced_bos_token_id = begin
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "bart")
    base = load_base(str(tmp_path / "bart"))
    with TestClient(app_of(base, AdapterStore(tmp_path / "store")), base_url="http://localhost") as client:
        body = {"model": "base", "prompt": "abc", "temperature": 0, "ignore_eos": True, "max_tokens": 3}
        found = client.post("/v1/completions", json=body).json()
        assert found["choices"][0]["text"].split() and "<s>" not in found["choices"][0]["text"]
        assert found["usage"] == {**found["usage"], "prompt_tokens": 5, "completion_tokens": 3}
        whole = client.post("/v1/completions", json={**body, "max_tokens": None}).json()
        assert whole["usage"]["completion_tokens"] == 12, "as many as the decoder has positions"
        for wrong, message in (
            ({"max_tokens": 13}, "decoder has 12 positions"),
            ({"prompt": "a" * 11}, "encoder has 12"),
        ):
            refused = client.post("/v1/completions", json={**body, **wrong})
            assert refused.status_code == 400 and message in refused.json()["error"]["message"]
            assert refused.json()["error"]["code"] == "context_length_exceeded"
