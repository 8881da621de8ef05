"""Prompts that are known beforehand: the answers are those of one prompt at a time, whoever gives them."""

import itertools

import pytest
import torch
from tests.engine.encoder_decoder.bases import bart, t5
from tests.engine.systems import END, MODELS, PROMPTS, gpt2, llama, with_lora
from tests.random_cases import covering
from tests.reference.one_at_a_time import greedy

from manytune.engine import answering
from manytune.engine.answering import answer_prompts
from manytune.engine.runner import Runner
from manytune.engine.static_batch import Generation, generate_batch
from manytune.errors import DataError
from manytune.methods.combined import CombinedConfig
from manytune.methods.lora.config import LoraConfig
from manytune.methods.prefix_tuning.model import PrefixTuningConfig
from manytune.methods.prompt_tuning.model import PromptTuningConfig
from manytune.model.activations import float32_activations
from manytune.model.attach import get_peft_model

DOCUMENTS = (tuple(range(2, 22)), tuple(range(20, 40)))
ASKED = [(*document, *question) for question in ((4, 5), (6,), (2, 3, 4)) for document in DOCUMENTS]


def merged():
    model = with_lora(llama())
    model.merge_adapter()
    return model


SYSTEMS = {**MODELS, "merged LoRA": merged}


@pytest.fixture
def static(monkeypatch):
    """Counts the calls of the static path."""
    calls = []
    monkeypatch.setattr(
        answering, "generate_batch", lambda *args, **kw: calls.append(1) or generate_batch(*args, **kw)
    )
    return calls


@pytest.mark.parametrize(
    ("system", "likeness", "batch_size"),
    covering(itertools.product(SYSTEMS, ("unlike", "alike"), (1, 4, 16)), tuple),
)
def test_answers_are_those_of_one_prompt_at_a_time(static, tokenizer, system, likeness, batch_size):
    model, prompts = SYSTEMS[system](), {"unlike": PROMPTS, "alike": ASKED}[likeness]
    answers = answer_prompts(model, tokenizer, prompts, max_new_tokens=9, batch_size=batch_size)
    expected = [greedy(model, prompt, max_new_tokens=9, stop_ids={END}) for prompt in prompts]
    assert [(answer.token_ids, answer.finished) for answer in answers] == expected
    assert answers == generate_batch(model, tokenizer, prompts, max_new_tokens=9)
    assert static == []


OTHERS = {
    "soft prompt": lambda: get_peft_model(
        llama(), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    ),
    "LoRA and a prefix": lambda: get_peft_model(
        llama(),
        CombinedConfig(
            weights=LoraConfig(r=2, target_modules=["q_proj"]),
            prompt=PrefixTuningConfig(num_virtual_tokens=2),
            task_type="CAUSAL_LM",
        ),
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_the_engine_cannot_run_is_answered_in_static_batches(static, tokenizer, kind):
    model = OTHERS[kind]()
    answers = answer_prompts(model, tokenizer, PROMPTS, max_new_tokens=4)
    assert answers == generate_batch(model, tokenizer, PROMPTS, max_new_tokens=4)
    assert static == [1]


def t5_with_lora():
    config = LoraConfig(r=2, target_modules=["q", "wo"], task_type="SEQ_2_SEQ_LM", init_lora_weights=False)
    return get_peft_model(t5(), config).eval()


@pytest.mark.parametrize("build", [t5_with_lora, bart])
def test_the_engine_answers_for_encoder_decoders(static, tokenizer, build):
    model = build()
    answers = answer_prompts(model, tokenizer, PROMPTS, max_new_tokens=6)
    assert static == []
    assert answers == generate_batch(model, tokenizer, PROMPTS, max_new_tokens=6)


def test_beams_of_an_encoder_decoder_are_searched_by_transformers(static, tokenizer):
    answer_prompts(t5(), tokenizer, PROMPTS[:2], max_new_tokens=3, beams=2)
    assert static == [1]


def test_what_prompts_share_is_read_once(tokenizer, monkeypatch):
    read = []
    forward = Runner.forward
    monkeypatch.setattr(
        Runner,
        "forward",
        lambda self, decode, chunks: (
            read.extend(len(chunk.tokens) for chunk in chunks) or forward(self, decode, chunks)
        ),
    )
    answer_prompts(llama(), tokenizer, ASKED, max_new_tokens=2, batch_size=6)
    # A block of 16 of each document's 20 tokens is shared by the second and the third question on it.
    assert sum(read) == sum(map(len, ASKED)) - 2 * 2 * 16


def test_further_end_tokens_end_an_answer_and_are_not_part_of_it(tokenizer):
    (whole,) = answer_prompts(llama(), tokenizer, PROMPTS[:1], max_new_tokens=9)
    end = whole.token_ids[2]
    kept = whole.token_ids[: whole.token_ids.index(end)]
    (cut,) = answer_prompts(llama(), tokenizer, PROMPTS[:1], max_new_tokens=9, end_ids=[end])
    assert cut == Generation(kept, tokenizer.decode(kept), "stop")


def test_progress_counts_answers(tokenizer):
    reports = []
    answer_prompts(
        gpt2(),
        tokenizer,
        PROMPTS,
        max_new_tokens=9,
        batch_size=2,
        progress=lambda done, total: reports.append((done, total)),
    )
    assert reports == sorted(set(reports)) and reports[-1] == (6, 6) and len(reports) > 2


def test_the_model_is_as_before(tokenizer):
    model = with_lora(llama()).train()
    model.get_base_model().model.norm.eval()
    answer_prompts(model, tokenizer, PROMPTS, max_new_tokens=2)
    assert model.training and not model.get_base_model().model.norm.training


def test_no_prompts_give_no_answers(tokenizer):
    assert answer_prompts(llama(), tokenizer, [], max_new_tokens=3) == []


@pytest.mark.parametrize(
    ("prompts", "options", "error", "message"),
    [
        ([(3,), ()], {}, DataError, "prompt 1 has no tokens"),
        ([(3,) * 60], {}, DataError, "sequence 0 has 60 tokens and 5 to generate, but the model has 64"),
        ([(3,)], {"batch_size": 0}, ValueError, "batch_size must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_answered_is_an_error_that_says_why(tokenizer, prompts, options, error, message):
    with pytest.raises(error, match=message):
        answer_prompts(llama(), tokenizer, prompts, max_new_tokens=5, **options)


def test_inside_of_float32_activations_half_precision_answers_too(tokenizer):
    model = llama().to(torch.bfloat16)
    with float32_activations(model):
        found = answer_prompts(model, tokenizer, PROMPTS, max_new_tokens=6)
        expected = generate_batch(model, tokenizer, PROMPTS, max_new_tokens=6)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
